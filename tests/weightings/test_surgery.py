"""pcgrad and gradvac: coefficients against vectors, against TorchJD, and where gradients degenerate."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchjd import aggregation

from mtlbench.errors import MtlbenchError
from mtlbench.solvers import SolverError
from mtlbench.solvers.surgery import STEEPEST, others_in_order, project_conflicts, vaccinate
from mtlbench.testing import check_weighting, matrix_zoo, tiny_tasks
from mtlbench_zoo.weightings.gradvac import GradVac
from mtlbench_zoo.weightings.pcgrad import PCGrad
from mtlbench_zoo.weightings.upgrad import UPGrad

SEEDS = st.integers(0, 2**32 - 1)
COUNTS = st.integers(1, 12)


@pytest.mark.parametrize(
    ("cls", "parameters"),
    [(PCGrad, {}), (GradVac, {}), (GradVac, {"beta": 0.5}), (GradVac, {"blocks": "layer"})],
)
def test_conformance(cls, parameters) -> None:
    check_weighting(cls, **parameters)


def conflicting(seed: int, count: int, width: int = 30) -> np.ndarray:
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(count, 2)) @ draw.normal(size=(2, width)) + 0.5 * draw.normal(
        size=(count, width)
    )
    return rows * np.exp(draw.normal(size=(count, 1)))


def draws(seed: int, count: int) -> np.ndarray:
    return torch.rand(
        count, count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).numpy()


def orders(seed: int, count: int) -> np.ndarray:
    return others_in_order(draws(seed, count))


def pcgrad_on_vectors(jacobian: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Algorithm 1 of the paper, word for word."""
    total = np.zeros(jacobian.shape[1])
    for gradient, partners in zip(jacobian, order, strict=True):
        own = gradient.copy()
        for partner in partners:
            product = own @ jacobian[partner]
            if product < 0:
                own -= product / (jacobian[partner] @ jacobian[partner]) * jacobian[partner]
        total += own
    return total


def gradvac_on_vectors(jacobian, order, targets, beta) -> np.ndarray:
    """Algorithm 1 of the paper, with one parameter group; ``targets`` are changed in place."""
    total = np.zeros(jacobian.shape[1])
    for i, partners in enumerate(order):
        own = jacobian[i].copy()
        for j in partners:
            length, other = np.linalg.norm(own), np.linalg.norm(jacobian[j])
            phi, target = own @ jacobian[j] / length / other, targets[i, j]
            if phi < target:
                root = math.sqrt(1 - target**2)
                own += length * (target * math.sqrt(1 - phi**2) - phi * root) / (other * root) * jacobian[j]
            targets[i, j] = (1 - beta) * target + beta * phi
        total += own
    return total


def test_every_partner_comes_once_and_never_the_task_itself() -> None:
    order = orders(0, 7)
    for task, partners in enumerate(order):
        assert sorted([task, *partners]) == list(range(7))
    assert orders(0, 1).shape == (1, 0)


def test_every_order_is_as_likely() -> None:
    weighting = PCGrad()
    weighting.generator.manual_seed(0)
    found = [tuple(others_in_order(weighting.draws(4))[0]) for _ in range(3000)]
    counts = [found.count(order) for order in itertools.permutations((1, 2, 3))]
    assert sum(counts) == 3000
    assert min(counts) > 420  # 500 expected, standard deviation 20


@settings(max_examples=60, deadline=None)
@given(SEEDS, COUNTS)
def test_projections_on_coefficients_are_those_on_vectors(seed: int, count: int) -> None:
    jacobian = conflicting(seed, count)
    expected = pcgrad_on_vectors(jacobian, orders(seed, count))
    found = project_conflicts(jacobian @ jacobian.T, draws(seed, count)) @ jacobian
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9 * np.linalg.norm(jacobian))


@settings(max_examples=60, deadline=None)
@given(SEEDS, COUNTS, st.floats(0, 1))
def test_the_vaccine_on_coefficients_is_that_on_vectors(seed: int, count: int, beta: float) -> None:
    targets = np.zeros((count, count))
    followed = targets.copy()
    for step in range(4):
        jacobian = conflicting(seed + step, count)
        expected = gradvac_on_vectors(jacobian, orders(seed + step, count), followed, beta)
        weights = vaccinate(jacobian @ jacobian.T, draws(seed + step, count), targets, beta)
        size = np.abs(weights) @ np.linalg.norm(jacobian, axis=1)
        assert weights @ jacobian == pytest.approx(expected, rel=1e-6, abs=1e-6 * size)
        assert targets == pytest.approx(followed, abs=1e-6)


@pytest.mark.parametrize("cls", [PCGrad, GradVac])
def test_orders_are_drawn_from_the_generator_step_by_step(cls: type) -> None:
    weighting, generator = cls(tiny_tasks(6)), torch.Generator().manual_seed(5)
    weighting.generator.manual_seed(5)
    jacobian = conflicting(0, 6)
    gram, targets = jacobian @ jacobian.T, np.zeros((6, 6))
    for step in range(40):
        drawn = torch.rand(6, 6, dtype=torch.float64, generator=generator).numpy()
        if step % 7 == 3:  # a checkpoint, also amid what is drawn ahead
            resumed = cls(tiny_tasks(6))
            resumed.load_state_dict(weighting.state_dict())
            weighting = resumed
        found = weighting(torch.from_numpy(gram), torch.ones(6)).numpy() @ jacobian
        if cls is PCGrad:
            expected = pcgrad_on_vectors(jacobian, others_in_order(drawn))
        else:
            expected = vaccinate(gram, drawn, targets, 0.01) @ jacobian
        assert found == pytest.approx(expected, rel=1e-9)


def test_another_number_of_tasks_meets_in_orders_of_its_own() -> None:
    weighting = PCGrad()
    for count in (3, 5, 3, 2, 1, 3):
        assert weighting.draws(count).shape == (count, count)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10])
def test_pcgrad_is_torchjds_in_the_same_order(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    jacobian, order = conflicting(count, count), orders(count, count)
    drawn = iter([torch.tensor([*row, task]) for task, row in enumerate(order)])
    monkeypatch.setattr(torch, "randperm", lambda size: next(drawn))
    expected = aggregation.PCGrad()(torch.from_numpy(jacobian))
    found = project_conflicts(jacobian @ jacobian.T, draws(count, count)) @ jacobian
    assert found == pytest.approx(expected.numpy(), rel=1e-9)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10])
def test_gradvac_is_torchjds_in_the_same_order(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, targets = aggregation.GradVac(beta=0.3, eps=0), np.zeros((count, count))
    for step in range(5):
        jacobian, order = conflicting(10 * count + step, count), orders(step, count)
        # theirs permutes the list of the others, which skips the task itself
        drawn = iter([torch.from_numpy(row - (row > task)) for task, row in enumerate(order)])
        monkeypatch.setattr(torch, "randperm", lambda size, drawn=drawn: next(drawn))
        expected = theirs(torch.from_numpy(jacobian)).numpy()
        weights = vaccinate(jacobian @ jacobian.T, draws(step, count), targets, 0.3)
        assert weights @ jacobian == pytest.approx(expected, rel=1e-7)


def test_two_tasks_are_upgrads() -> None:
    for seed in range(20):
        jacobian = conflicting(seed, 2)
        found = project_conflicts(jacobian @ jacobian.T, draws(0, 2)) @ jacobian
        gram = torch.from_numpy(jacobian @ jacobian.T)
        expected = 2 * UPGrad()(gram, torch.ones(2)).numpy() @ jacobian
        assert found == pytest.approx(expected, rel=1e-9)


def test_without_conflict_it_is_the_sum() -> None:
    jacobian = np.abs(conflicting(0, 5))
    assert project_conflicts(jacobian @ jacobian.T, draws(0, 5)) == pytest.approx(np.ones(5))
    assert project_conflicts(np.diag([1.0, 4.0, 0.0]), draws(0, 3)).tolist() == [1, 1, 1]


def test_opposite_gradients_cancel() -> None:
    jacobian = np.array([[2.0, 0.0], [-5.0, 0.0]])
    gram, targets = jacobian @ jacobian.T, np.zeros((2, 2))
    assert project_conflicts(gram, draws(0, 2)) @ jacobian == pytest.approx([0, 0], abs=1e-12)
    weights = vaccinate(gram, draws(0, 2), targets, 0.1)
    assert weights @ jacobian == pytest.approx([0, 0], abs=1e-12)
    assert targets.tolist() == [[0, -0.1], [-0.1, 0]]


def test_at_first_the_vaccine_is_pcgrad_for_two_tasks() -> None:
    jacobian = conflicting(3, 2)
    gram = jacobian @ jacobian.T
    weights = vaccinate(gram, draws(0, 2), np.zeros((2, 2)), 0.01)
    assert weights == pytest.approx(project_conflicts(gram, draws(0, 2)))


def test_the_vaccine_reaches_its_target_cosine() -> None:
    jacobian = np.array([[1.0, 0.0], [-0.5, 0.8]])
    for target in (-0.3, 0.0, 0.5, 0.99):
        targets = np.array([[0, target], [-1, 0]])
        weights = vaccinate(jacobian @ jacobian.T, draws(0, 2), targets, 0.0)
        own = weights @ jacobian - jacobian[1]
        cosine = own @ jacobian[1] / np.linalg.norm(own) / np.linalg.norm(jacobian[1])
        assert cosine == pytest.approx(target)


def test_collinear_gradients_leave_no_nan_behind() -> None:
    weighting = GradVac(tiny_tasks(3), beta=0.9)
    parallel = torch.ones(3, 3, dtype=torch.float64)
    for _ in range(300):
        assert weighting(parallel, torch.ones(3)).isfinite().all()
    assert weighting.targets[0].fill_diagonal_(1) == pytest.approx(torch.ones(3, 3))
    weights = weighting(torch.eye(3, dtype=torch.float64), torch.ones(3))
    assert weights.isfinite().all()
    assert (
        weights.max() < 1e7
    )  # two partners, each at most about 1 / sqrt(2 - 2 STEEPEST) times what is there
    assert STEEPEST < 1


def test_a_zero_gradient_changes_neither_gradients_nor_targets() -> None:
    jacobian = conflicting(1, 4)
    jacobian[2] = 0
    kept = [0, 1, 3]
    targets, others = np.zeros((4, 4)), np.zeros((3, 3))
    weights = vaccinate(jacobian @ jacobian.T, draws(0, 4), targets, 0.5)
    rest = jacobian[kept]
    expected = vaccinate(rest @ rest.T, draws(0, 4)[np.ix_(kept, kept)], others, 0.5)
    assert weights[2] == 1
    assert weights[kept] == pytest.approx(expected)
    assert targets[np.ix_(kept, kept)] == pytest.approx(others)
    assert not targets[2].any()
    assert not targets[:, 2].any()


def test_targets_stay_where_nothing_can_be_solved() -> None:
    targets = np.full((2, 2), 0.25)
    with pytest.raises(SolverError, match="gradvac"):
        vaccinate(np.array([[1.0, np.nan], [np.nan, 1.0]]), draws(0, 2), targets, 0.5)
    assert (targets == 0.25).all()


def test_targets_of_tasks_without_a_label_rest() -> None:
    weighting = GradVac(tiny_tasks(3), beta=0.5)
    gram = torch.from_numpy((rows := conflicting(0, 3)) @ rows.T)
    weighting(gram, torch.ones(3))
    before = weighting.targets[0].clone()
    weighting.active = torch.tensor([0, 2])
    weighting(gram[[0, 2]][:, [0, 2]], torch.ones(2))
    moved = weighting.targets[0] != before
    assert moved.tolist() == [[False, False, True], [False, False, False], [True, False, False]]


def test_steps_of_any_scale_and_dependence_leave_finite_targets() -> None:
    by_count: dict[int, GradVac] = {}
    for matrix in matrix_zoo():
        weighting = by_count.setdefault(matrix.count, GradVac(tiny_tasks(matrix.count), beta=0.5))
        assert weighting(matrix.gram, matrix.losses).isfinite().all(), matrix.name
        assert weighting.targets.abs().max() <= 1, matrix.name


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_gradvac_names_a_wrong_beta(beta: float) -> None:
    with pytest.raises(MtlbenchError, match="gradvac: beta must be from 0 to 1"):
        GradVac(tiny_tasks(2), beta=beta)


@pytest.mark.parametrize("weighting", [PCGrad(), GradVac(tiny_tasks(2))])
def test_gradients_that_are_not_finite_end_in_an_error(weighting) -> None:
    weighting.active = torch.arange(2)
    with pytest.raises(SolverError, match="not finite"):
        weighting(torch.full((2, 2), torch.nan, dtype=torch.float64), torch.ones(2))


def test_blocks_are_vaccinated_each_by_itself_in_one_order() -> None:
    draw, parts = torch.Generator().manual_seed(8), [GradVac(tiny_tasks(4), beta=0.3) for _ in range(3)]
    together = GradVac(tiny_tasks(4), beta=0.3, blocks="layer")
    for weighting in (*parts, together):
        weighting.generator.manual_seed(5)
    for _ in range(3):
        rows = torch.randn(3, 4, 6, dtype=torch.float64, generator=draw)
        matrices = rows @ rows.transpose(1, 2)
        found = together(matrices, torch.ones(4))
        expected = [part(matrix, torch.ones(4)) for part, matrix in zip(parts, matrices, strict=True)]
        assert found.equal(torch.stack(expected))
    assert together.targets.equal(torch.cat([part.targets for part in parts]))
