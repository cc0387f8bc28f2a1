"""nash and fairgrad: conventions, clipping, reuse, and a peer's answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchjd.aggregation import FairGradWeighting

from mtlbench.errors import MtlbenchError
from mtlbench.testing import check_weighting, matrix_zoo
from mtlbench_zoo.weightings.fairgrad import FairGrad
from mtlbench_zoo.weightings.nash import NashMTL


def example(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * count + seed)
    jacobian = torch.randn(count, 30, dtype=torch.float64, generator=generator)
    return jacobian * torch.randn(count, 1, dtype=torch.float64, generator=generator).exp()


@pytest.mark.parametrize(
    ("cls", "parameters"),
    [
        (NashMTL, {}),
        (NashMTL, {"max_norm": 0.0, "update_weights_every": 5}),
        (FairGrad, {}),
        (FairGrad, {"alpha": 0.5}),
        (FairGrad, {"alpha": 2.0}),
    ],
)
def test_conformance(cls, parameters) -> None:
    check_weighting(cls, **parameters)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_the_bargain_is_the_one_of_the_normalised_matrix(count: int) -> None:
    jacobian = example(count)
    gram = jacobian @ jacobian.T
    gram /= gram.norm()
    weights = NashMTL(max_norm=0)(gram, torch.ones(count))
    assert gram @ weights == pytest.approx(1 / weights, rel=1e-9)
    for scale in (1e-12, 1e12):
        assert NashMTL(max_norm=0)(gram * scale, torch.ones(count)) == pytest.approx(weights, rel=1e-9)


def test_every_task_gains_and_no_other_direction_gains_more_in_product() -> None:
    jacobian = example(4)
    update = NashMTL()(jacobian @ jacobian.T, torch.ones(4)) @ jacobian
    update = update / update.norm()
    gains = jacobian @ update
    assert (gains > 0).all()
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        other = update + 0.1 * torch.randn(30, dtype=torch.float64, generator=generator)
        others = (jacobian @ (other / other.norm())).clamp(min=0)
        assert others.prod() <= gains.prod()


def test_a_loss_in_other_units_has_the_same_update() -> None:
    jacobian = example(3)
    stretched = jacobian * torch.tensor([1.0, 1e-3, 1e3], dtype=torch.float64)[:, None]
    for weighting in (NashMTL(max_norm=0.5), FairGrad()):
        first = weighting(jacobian @ jacobian.T, torch.ones(3)) @ jacobian
        second = weighting(stretched @ stretched.T, torch.ones(3)) @ stretched
        assert first == pytest.approx(second, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_the_update_is_no_longer_than_max_norm(factor: float) -> None:
    jacobian = factor * example(4)
    free = NashMTL(max_norm=0)(jacobian @ jacobian.T, torch.ones(4)) @ jacobian
    clipped = NashMTL()(jacobian @ jacobian.T, torch.ones(4)) @ jacobian
    assert clipped.norm() == pytest.approx(min(1.0, free.norm()))
    assert clipped / clipped.norm() == pytest.approx(free / free.norm())


def test_weights_are_reused_as_often_as_told() -> None:
    assert NashMTL().every == 1
    assert NashMTL(update_weights_every=10).every == 10


def test_fairness_of_one_is_the_nash_bargain() -> None:
    for matrix in matrix_zoo():
        nash, fair = NashMTL(max_norm=0), FairGrad()
        ours, theirs = nash(matrix.gram, matrix.losses), fair(matrix.gram, matrix.losses)
        assert ours / ours.sum() == pytest.approx(theirs / theirs.sum(), rel=1e-9)


def test_little_fairness_is_equal_weighting() -> None:
    jacobian = example(4)
    assert FairGrad(alpha=1e-3)(jacobian @ jacobian.T, torch.ones(4)) == pytest.approx(1, rel=1e-2)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_peer_comes_near_where_its_tolerances_allow(count: int, alpha: float) -> None:
    jacobian = example(count)
    jacobian = jacobian / jacobian.norm(dim=1, keepdim=True)
    gram = jacobian @ jacobian.T
    ours, theirs = FairGrad(alpha)(gram, torch.ones(count)), FairGradWeighting(alpha)(gram)
    assert ours == pytest.approx(theirs, rel=1e-4)

    def residual(weights: torch.Tensor) -> float:
        return (gram @ weights - weights ** (-1 / alpha)).abs().max().item()

    assert residual(ours) <= max(residual(theirs), 1e-11)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NashMTL(max_norm=-1.0), "nash: max_norm must be 0 .* got -1.0"),
        (lambda: NashMTL(max_norm=np.nan), "nash: max_norm must be 0 .* got nan"),
        (lambda: NashMTL(update_weights_every=0), "nash: update_weights_every must be 1 or more, got 0"),
        (lambda: FairGrad(alpha=0.0), "fairgrad: alpha must be above 0 and finite, got 0.0"),
    ],
)
def test_bad_parameters_are_refused(make, message: str) -> None:
    with pytest.raises(MtlbenchError, match=message):
        make()
