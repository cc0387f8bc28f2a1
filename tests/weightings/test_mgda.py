"""mgda: what its update is, with every normalisation and both solvers."""

from __future__ import annotations

import pytest
import torch

from mtlbench.solvers import SolverError, min_norm_point
from mtlbench.testing import check_weighting, matrix_zoo
from mtlbench_zoo.weightings.mgda import MGDA

NORMALIZATIONS = ("none", "l2", "loss", "loss+")


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_conformance(normalize) -> None:
    check_weighting(MGDA, normalize=normalize)


def example(seed: int = 0, count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(count, 6, dtype=torch.float64, generator=generator)
    jacobian *= torch.logspace(-1, 1, count, dtype=torch.float64)[:, None]
    return jacobian, torch.rand(count, generator=generator) + 0.5


def test_without_normalisation_it_is_the_min_norm_point() -> None:
    jacobian, losses = example()
    gram = jacobian @ jacobian.T
    assert MGDA()(gram, losses).tolist() == min_norm_point(gram.numpy()).tolist()


@pytest.mark.parametrize("normalize", NORMALIZATIONS[1:])
def test_the_update_points_along_the_shortest_normalised_vector(normalize) -> None:
    jacobian, losses = example()
    lengths, sizes = jacobian.norm(dim=1), losses.double()
    scale = {"l2": lengths, "loss": sizes, "loss+": lengths * sizes}[normalize]
    normalized = jacobian / scale[:, None]
    shortest = torch.from_numpy(min_norm_point((normalized @ normalized.T).numpy())) @ normalized
    update = MGDA(normalize)(jacobian @ jacobian.T, losses) @ jacobian
    assert update == pytest.approx(shortest / (1 / scale).mean(), rel=1e-9)


def test_the_update_of_unit_gradients_does_not_depend_on_their_lengths_in_direction() -> None:
    jacobian, losses = example()
    stretched = jacobian * torch.tensor([10.0, 0.1, 3.0, 1.0])[:, None]
    first = MGDA("l2")(jacobian @ jacobian.T, losses) @ jacobian
    second = MGDA("l2")(stretched @ stretched.T, losses) @ stretched
    assert first / first.norm() == pytest.approx(second / second.norm(), rel=1e-9)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_a_zero_gradient_stops_the_update_without_nan(normalize) -> None:
    jacobian, losses = example()
    jacobian[1] = 0
    weights = MGDA(normalize)(jacobian @ jacobian.T, losses)
    assert weights.isfinite().all()
    assert not (weights @ jacobian).any()


@pytest.mark.parametrize("normalize", ["loss", "loss+"])
@pytest.mark.parametrize("loss", [0.0, -1.0])
def test_a_loss_that_is_not_positive_turns_no_gradient_round(normalize, loss: float) -> None:
    jacobian, losses = example()
    losses[2] = loss
    weights = MGDA(normalize)(jacobian @ jacobian.T, losses)
    assert weights.isfinite().all()
    assert (weights >= 0).all()


def test_cvxpy_is_the_same_method() -> None:
    for matrix in matrix_zoo():
        if matrix.count in (2, 5) and "float32" not in matrix.name:
            gram = matrix.gram
            exact, generic = MGDA()(gram, matrix.losses), MGDA(solver="cvxpy")(gram, matrix.losses)
            size = (exact @ gram.diagonal().sqrt()).item() ** 2
            ours, theirs = (exact @ gram @ exact).item(), (generic @ gram @ generic).item()
            assert theirs == pytest.approx(ours, rel=1e-6, abs=1e-6 * size), matrix.name


def test_cvxpy_answers_alike_twice() -> None:
    first, second = example(0), example(1)
    gram, other = first[0] @ first[0].T, second[0] @ second[0].T
    weighting = MGDA(solver="cvxpy")
    before = weighting(gram, first[1])
    weighting(other, second[1])
    assert torch.equal(before, weighting(gram, first[1]))


def test_gradients_that_are_not_finite_end_in_an_error() -> None:
    gram = torch.eye(3, dtype=torch.float64)
    gram[0, 1] = torch.nan
    with pytest.raises(SolverError, match="not finite at row 0, column 1"):
        MGDA()(gram, torch.ones(3))
