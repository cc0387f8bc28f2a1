"""aligned and config: their definitions on the vectors themselves, closed forms, and a peer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchjd.aggregation import AlignedMTL as PeerAligned
from torchjd.aggregation import ConFIG as PeerConFIG

from mtlbench.errors import MtlbenchError
from mtlbench.solvers import SolverError, aligned_weights, config_weights
from mtlbench.testing import check_weighting
from mtlbench_zoo.weightings.aligned import AlignedMTL
from mtlbench_zoo.weightings.config import ConFIG

DOUBLE = float(np.finfo(float).eps)


def example(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * count + seed)
    jacobian = torch.randn(count, 30, dtype=torch.float64, generator=generator)
    return jacobian * torch.randn(count, 1, dtype=torch.float64, generator=generator).exp()


def update(weighting, jacobian: torch.Tensor) -> torch.Tensor:
    return weighting(jacobian @ jacobian.T, torch.ones(len(jacobian))) @ jacobian


@pytest.mark.parametrize(
    ("cls", "parameters"),
    [
        *((AlignedMTL, {"scale_mode": mode}) for mode in ("min", "median", "rmse")),
        (AlignedMTL, {"precision": 1e-14}),
        (ConFIG, {}),
        (ConFIG, {"precision": 1e-14}),
    ],
)
def test_conformance(cls, parameters) -> None:
    check_weighting(cls, **parameters)


@pytest.mark.parametrize("mode", ["min", "median", "rmse"])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 10])
def test_aligned_sums_the_nearest_orthogonal_rows(count: int, mode) -> None:
    jacobian = example(count)
    left, singular, right = torch.linalg.svd(jacobian, full_matrices=False)
    scale = {
        "min": singular.min(),
        "median": singular.flip(0)[(count - 1) // 2],
        "rmse": singular.square().mean().sqrt(),
    }[mode]
    assert update(AlignedMTL(mode), jacobian) == pytest.approx(scale * (left @ right).sum(0), rel=1e-8)


@pytest.mark.parametrize("mode", ["min", "median", "rmse"])
@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_the_peer_aligns_alike_up_to_the_mean(count: int, mode) -> None:
    jacobian = example(count)
    expected = count * PeerAligned(scale_mode=mode)(jacobian)
    assert update(AlignedMTL(mode, DOUBLE), jacobian) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10])
def test_the_peer_finds_the_same_conflict_free_update(count: int) -> None:
    jacobian = example(count)
    assert update(ConFIG(), jacobian) == pytest.approx(PeerConFIG()(jacobian), rel=1e-8)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_every_task_has_the_same_cosine_and_the_length_is_that_of_the_projections(count: int) -> None:
    jacobian = example(count)
    found = update(ConFIG(), jacobian)
    cosines = jacobian @ found / (jacobian.norm(dim=1) * found.norm())
    assert (cosines > 0).all()
    assert cosines == pytest.approx(cosines.mean().expand(count), rel=1e-8)
    assert found.norm() == pytest.approx((jacobian @ found / found.norm()).sum())


@pytest.mark.parametrize("cls", [AlignedMTL, ConFIG])
def test_orthogonal_gradients_of_one_length_are_summed(cls) -> None:
    assert cls()(4 * torch.eye(5, dtype=torch.float64), torch.ones(5)) == pytest.approx(1)


def test_orthogonal_gradients_are_aligned_to_the_length_asked_for() -> None:
    gram = torch.diag(torch.tensor([1.0, 4.0, 16.0], dtype=torch.float64))
    lengths = torch.tensor([1.0, 2.0, 4.0])
    for mode, scale in (("min", 1.0), ("median", 2.0), ("rmse", 7**0.5)):
        assert AlignedMTL(mode)(gram, torch.ones(3)) == pytest.approx(scale / lengths)


def test_identical_gradients_share_one_direction() -> None:
    row = example(1)[0]
    jacobian = row.expand(4, -1)
    # one singular value, twice the length; the aligned rows are its direction, each half as long
    assert update(AlignedMTL(), jacobian) == pytest.approx(4 * row, rel=1e-9)
    assert update(ConFIG(), jacobian) == pytest.approx(4 * row, rel=1e-9)


def test_rounding_errors_of_float32_gradients_are_no_direction() -> None:
    row = example(1)[0]
    noise = 1e-7 * torch.randn(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    jacobian = row + noise
    for weighting in (AlignedMTL(), ConFIG()):
        assert update(weighting, jacobian) == pytest.approx(2 * row, abs=1e-5 * row.norm().item())
    assert update(AlignedMTL(precision=DOUBLE), jacobian).norm() < 1e-5 * row.norm()


def test_gradients_of_zero() -> None:
    zero = torch.zeros(3, 3, dtype=torch.float64)
    assert AlignedMTL()(zero, torch.ones(3)).tolist() == [1, 1, 1]
    assert ConFIG()(zero, torch.ones(3)).tolist() == [0, 0, 0]
    jacobian = example(3)
    jacobian[1] = 0
    weights = ConFIG()(jacobian @ jacobian.T, torch.ones(3))
    assert weights[1] == 0
    assert weights @ jacobian == pytest.approx(update(ConFIG(), jacobian[[0, 2]]), rel=1e-9)


def test_opposite_gradients_leave_nothing_of_config() -> None:
    row = example(1)[0]
    assert not ConFIG()(torch.stack([row, -2 * row]) @ torch.stack([row, -2 * row]).T, torch.ones(2)).any()


@pytest.mark.parametrize("solve", [aligned_weights, config_weights])
def test_bad_matrices_are_refused(solve) -> None:
    with pytest.raises(SolverError, match=rf"{solve.__name__}: .* not finite at row 0, column 1"):
        solve(np.array([[1.0, np.inf], [0.0, 1.0]]), precision=1e-7)
    with pytest.raises(SolverError, match=r"on its diagonal"):
        solve(np.diag([1.0, -1.0]), precision=1e-7)


@pytest.mark.parametrize("cls", [AlignedMTL, ConFIG])
def test_a_precision_that_is_none_is_refused(cls) -> None:
    with pytest.raises(MtlbenchError, match=r"precision must be between 0 and 1, got 0\.0"):
        cls(precision=0.0)


@pytest.mark.parametrize("cls", [AlignedMTL, ConFIG])
def test_what_counts_follows_the_precision_of_the_gradients(cls) -> None:
    """A direction of relative size 1e-4 is noise in bfloat16 and none in float32; a parameter overrules."""
    rows = torch.tensor([[1.0, 0, 0], [1.0, 0.01, 0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    gram = rows @ rows.T
    losses, fine, coarse, told = torch.ones(3), cls(), cls(), cls(precision=2.0**-7)
    coarse.eps = 2.0**-7
    assert coarse(gram, losses).equal(told(gram, losses))
    assert not coarse(gram, losses).allclose(fine(gram, losses))
    told.eps = 2.0**-52
    assert coarse(gram, losses).equal(told(gram, losses))
