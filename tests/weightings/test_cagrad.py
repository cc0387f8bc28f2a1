"""cagrad: its update in the space of vectors, rescaling, and a peer."""

from __future__ import annotations

import cvxpy
import numpy as np
import pytest
import torch
from torchjd.aggregation import CAGradWeighting

from mtlbench.errors import MtlbenchError
from mtlbench.testing import check_weighting
from mtlbench_zoo.weightings.cagrad import CAGrad


def example(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * count + seed)
    common = torch.randn(1, 20, dtype=torch.float64, generator=generator)
    jacobian = common + 2 * torch.randn(count, 20, dtype=torch.float64, generator=generator)
    return jacobian * torch.randn(count, 1, dtype=torch.float64, generator=generator).exp()


@pytest.mark.parametrize("parameters", [{}, {"c": 0.4, "rescale": 0}, {"c": 0.0}, {"c": 1.5, "rescale": 2}])
def test_conformance(parameters) -> None:
    check_weighting(CAGrad, **parameters)


@pytest.mark.parametrize("c", [0.2, 0.5])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_it_is_the_best_vector_in_the_ball(count: int, c: float) -> None:
    jacobian = example(count)
    jacobian = jacobian / jacobian.norm()
    mean = jacobian.mean(0).numpy()
    update, least = cvxpy.Variable(20), cvxpy.Variable()
    inside = cvxpy.norm(update - mean) <= c * np.linalg.norm(mean)
    problem = cvxpy.Problem(cvxpy.Maximize(least), [jacobian.numpy() @ update >= least, inside])
    problem.solve(solver="CLARABEL")
    ours = (CAGrad(c, 0)(jacobian @ jacobian.T, torch.ones(count)) @ jacobian).numpy()
    assert ours == pytest.approx(update.value, abs=1e-4 * np.linalg.norm(ours))
    assert (jacobian.numpy() @ ours).min() == pytest.approx(problem.value, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_the_peer_comes_as_near_as_its_tolerance_allows(count: int, c: float) -> None:
    for seed in range(3):
        jacobian = example(count, seed)
        gram = jacobian @ jacobian.T / jacobian.square().sum()
        ours, theirs = CAGrad(c, 0)(gram, torch.ones(count)), CAGradWeighting(c, norm_eps=0.0)(gram)
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-3)
        assert (gram @ ours).min() >= (gram @ theirs).min() - 1e-6


def test_rescaling() -> None:
    gram = example(3) @ example(3).T
    plain = CAGrad(0.5, 0)(gram, torch.ones(3))
    assert CAGrad(0.5)(gram, torch.ones(3)) == pytest.approx(plain / 1.25)
    assert CAGrad(0.5, 2)(gram, torch.ones(3)) == pytest.approx(plain / 1.5)


def test_without_a_ball_it_is_the_mean() -> None:
    assert CAGrad(0.0)(example(4) @ example(4).T, torch.ones(4)).tolist() == [0.25] * 4


@pytest.mark.parametrize("c", [-0.1, np.nan, np.inf])
def test_bad_radii_are_refused(c: float) -> None:
    with pytest.raises(MtlbenchError, match=f"cagrad: c must be 0 or more, and finite, got {c}"):
        CAGrad(c)
