"""upgrad and dualproj: projections on the dual cone, beside vectors, closed forms, cvxpy and a peer."""

from __future__ import annotations

import cvxpy
import numpy as np
import pytest
import torch
from torchjd.aggregation import DualProjWeighting, UPGradWeighting
from torchjd.linalg import DualConeProjector

from mtlbench.testing import check_weighting
from mtlbench_zoo.weightings.dualproj import DualProj
from mtlbench_zoo.weightings.upgrad import UPGrad

quadprog = pytest.importorskip("quadprog", reason="the peer's projections need quadprog, a test tool")


class Quadprog(DualConeProjector):
    """The peer's projector without its regularisation: ``min pᵀ G p, p >= u`` by quadprog."""

    def __call__(self, U: torch.Tensor, G: torch.Tensor) -> torch.Tensor:
        matrix = (G / G.trace()).numpy()
        constraints = np.eye(len(matrix))
        rows = [
            quadprog.solve_qp(matrix, np.zeros(len(matrix)), constraints, u)[0]
            for u in U.reshape(-1, len(matrix)).numpy()
        ]
        return torch.from_numpy(np.array(rows)).reshape(U.shape)


def example(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * count + seed)
    common = torch.randn(count, 3, dtype=torch.float64, generator=generator) @ torch.randn(
        3, 60, dtype=torch.float64, generator=generator
    )
    noise = torch.randn(count, 60, dtype=torch.float64, generator=generator)
    lengths = torch.randn(count, 1, dtype=torch.float64, generator=generator).exp()
    return (common + noise) * lengths


def update(weighting, jacobian: torch.Tensor) -> torch.Tensor:
    return weighting(jacobian @ jacobian.T, torch.ones(len(jacobian))) @ jacobian


def projected(jacobian: torch.Tensor, vector: torch.Tensor) -> np.ndarray:
    """The nearest vector to ``vector`` in the dual cone, by cvxpy on the vectors themselves."""
    unit = jacobian / jacobian.norm(dim=1, keepdim=True)
    nearest = cvxpy.Variable(jacobian.shape[1])
    distance = cvxpy.sum_squares(nearest - (vector / vector.norm()).numpy())
    cvxpy.Problem(cvxpy.Minimize(distance), [unit.numpy() @ nearest >= 0]).solve(
        solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11
    )
    return nearest.value * vector.norm().item()


@pytest.mark.parametrize("cls", [UPGrad, DualProj])
def test_conformance(cls) -> None:
    check_weighting(cls)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_dualproj_is_the_nearest_vector_to_the_mean(count: int) -> None:
    jacobian = example(count)
    expected = projected(jacobian, jacobian.mean(0))
    assert update(DualProj(), jacobian).numpy() == pytest.approx(
        expected, abs=1e-6 * np.linalg.norm(expected)
    )


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_upgrad_is_the_mean_of_the_nearest_vectors(count: int) -> None:
    jacobian = example(count)
    expected = np.mean([projected(jacobian, row) for row in jacobian], axis=0)
    assert update(UPGrad(), jacobian).numpy() == pytest.approx(expected, abs=1e-6 * np.linalg.norm(expected))


@pytest.mark.parametrize("count", [2, 3, 5, 10, 20])
@pytest.mark.parametrize(("ours", "theirs"), [(UPGrad, UPGradWeighting), (DualProj, DualProjWeighting)])
def test_the_peer_finds_the_same_weights(ours, theirs, count: int) -> None:
    for seed in range(4):
        jacobian = example(count, seed)
        gram = jacobian @ jacobian.T
        expected = theirs(projector=Quadprog())(gram)
        assert ours()(gram, torch.ones(count)) == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_two_conflicting_gradients_lose_each_others_part() -> None:
    first, second = example(2)
    second = second - 2 * (second @ first) / (first @ first) * first
    if first @ second > 0:
        first = -first
    without_second = first - (first @ second) / (second @ second) * second
    without_first = second - (second @ first) / (first @ first) * first
    expected = (without_second + without_first) / 2
    assert update(UPGrad(), torch.stack([first, second])) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("cls", [UPGrad, DualProj])
def test_without_conflict_it_is_the_mean(cls) -> None:
    jacobian = example(4).abs()
    assert cls()(jacobian @ jacobian.T, torch.ones(4)).tolist() == [0.25] * 4
    assert cls()(torch.eye(3, dtype=torch.float64), torch.ones(3)).tolist() == [1 / 3] * 3


@pytest.mark.parametrize("cls", [UPGrad, DualProj])
def test_opposite_gradients_leave_nothing(cls) -> None:
    row = example(2)[0]
    jacobian = torch.stack([row, -3 * row, 2 * row])
    assert update(cls(), jacobian) == pytest.approx(torch.zeros(60, dtype=torch.float64), abs=1e-12)


def test_dualproj_keeps_a_mean_that_upgrad_changes() -> None:
    jacobian = torch.tensor([[1.0, 0.0], [-0.4, 1.0]], dtype=torch.float64)
    assert update(DualProj(), jacobian).tolist() == jacobian.mean(0).tolist()
    assert update(UPGrad(), jacobian).tolist() != jacobian.mean(0).tolist()
