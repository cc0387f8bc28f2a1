"""graddrop, trimmed-mean, moco, db-mtl and excess against their formulas and against TorchJD."""

from __future__ import annotations

import math
from collections.abc import Callable

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchjd import aggregation

from mtlbench.errors import MtlbenchError
from mtlbench.solvers import min_norm_point
from mtlbench.solvers.simplex import project_to_simplex
from mtlbench.testing import check_weighting, matrix_zoo, tiny_tasks
from mtlbench_zoo.weightings._state import GradientState, weighted_sum
from mtlbench_zoo.weightings.db_mtl import DBMTL
from mtlbench_zoo.weightings.excess import ExcessMTL
from mtlbench_zoo.weightings.graddrop import GradDrop
from mtlbench_zoo.weightings.moco import MoCo
from mtlbench_zoo.weightings.trimmed_mean import TrimmedMean

STATEFUL = (DBMTL, ExcessMTL, MoCo)


@pytest.mark.parametrize(
    ("cls", "parameters"),
    [
        (GradDrop, {}),
        (GradDrop, {"leak": 0.3}),
        (GradDrop, {"leak": [0.0, 0.5, 1.0]}),
        (TrimmedMean, {}),
        (TrimmedMean, {"trim_number": 3}),
        (MoCo, {}),
        (MoCo, {"gamma": 10.0, "gamma_sigma": 0.0, "rho": 0.5}),
        (DBMTL, {}),
        (DBMTL, {"beta_sigma": 0.5}),
        (ExcessMTL, {}),
        (ExcessMTL, {"robust_step_size": 1.0}),
    ],
)
def test_conformance(cls, parameters) -> None:
    check_weighting(cls, **parameters)


def jacobian(seed: int, count: int = 4, width: int = 50) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=draw, dtype=torch.float64) + 0.2


# ---- graddrop --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leak", [0.0, 0.4, [0.0, 0.5, 1.0, 0.2]])
def test_graddrop_is_torchjds_with_the_same_draws(leak, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, weighting = jacobian(0), GradDrop(tiny_tasks(4), leak=leak)
    weighting.generator.manual_seed(1)
    draws = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = weighting(matrix, torch.ones(4))
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: draws)
    leaks = torch.tensor(leak if isinstance(leak, list) else [leak] * 4, dtype=torch.float64)
    assert found == pytest.approx(aggregation.GradDrop(leak=leaks)(matrix), rel=1e-12)


def test_graddrop_keeps_one_sign_and_is_the_sum_in_the_mean() -> None:
    matrix, weighting = jacobian(1), GradDrop(tiny_tasks(4))
    positive, negative = matrix.clamp(min=0).sum(0), matrix.clamp(max=0).sum(0)
    answers = torch.stack([weighting(matrix, torch.ones(4)) for _ in range(4000)])
    assert ((answers == positive) | (answers == negative)).all()
    error = (answers.mean(0) - matrix.sum(0)).abs() / (answers.std(0) / 4000**0.5 + 1e-9)
    assert error.max() < 4.5


def test_a_full_leak_is_the_sum() -> None:
    matrix = jacobian(2)
    assert GradDrop(tiny_tasks(4), leak=1.0)(matrix, torch.ones(4)) == pytest.approx(matrix.sum(0))


def test_each_task_has_its_own_leak_also_when_others_lack_labels() -> None:
    weighting = GradDrop(tiny_tasks(3), leak=[0.0, 0.0, 1.0])
    weighting.active = torch.tensor([2])
    matrix = jacobian(3, 1)
    assert weighting(matrix, torch.ones(1)) == pytest.approx(matrix[0])


def test_elements_without_a_gradient_stay_zero() -> None:
    assert GradDrop(tiny_tasks(2))(torch.zeros(2, 5), torch.ones(2)).tolist() == [0] * 5


@pytest.mark.parametrize(
    ("leak", "message"),
    [(1.5, "leak must be from 0 to 1, got 1.5"), ([0.1, 0.2], "got 2 for 3 tasks"), (math.nan, "got nan")],
)
def test_graddrop_names_a_wrong_leak(leak, message: str) -> None:
    with pytest.raises(MtlbenchError, match=f"^graddrop: .*{message}"):
        GradDrop(tiny_tasks(3), leak=leak)


# ---- trimmed mean ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "trim"), [(3, 0), (3, 1), (4, 1), (7, 2), (9, 4)])
def test_the_trimmed_mean_is_torchjds(count: int, trim: int) -> None:
    matrix = jacobian(0, count)
    expected = aggregation.TrimmedMean(trim)(matrix)
    assert TrimmedMean(trim)(matrix, torch.ones(count)) == pytest.approx(expected, rel=1e-12)


def test_at_least_one_gradient_is_left() -> None:
    for count, expected in (
        (1, jacobian(0, 1)[0]),
        (2, jacobian(0, 2).mean(0)),
        (3, jacobian(0, 3).median(0).values),
    ):
        assert TrimmedMean(5)(jacobian(0, count), torch.ones(count)) == pytest.approx(expected)


def test_one_wrong_gradient_does_no_harm() -> None:
    matrix = jacobian(0, 5)
    bad = matrix.clone()
    bad[2] = 1e30
    assert (TrimmedMean()(bad, torch.ones(5)) <= matrix.max(0).values).all()


def test_the_trimmed_mean_names_a_wrong_number() -> None:
    with pytest.raises(MtlbenchError, match="trim_number must be an integer >= 0, got -1"):
        TrimmedMean(-1)


# ---- moco ------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.sampled_from([0.1, 1.0, 30.0]))
def test_the_projection_on_the_simplex_is_the_nearest_point(seed: int, count: int, size: float) -> None:
    point = size * np.random.default_rng(seed).normal(size=count)
    found = project_to_simplex(point)
    w = cvxpy.Variable(count)
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(w - point)), [w >= 0, cvxpy.sum(w) == 1])
    best = problem.solve(solver=cvxpy.CLARABEL)
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1)
    assert ((found - point) ** 2).sum() == pytest.approx(best, rel=1e-6, abs=1e-9)


def test_moco_is_the_papers_recursion() -> None:
    weighting = MoCo(tiny_tasks(3), beta=0.6, beta_sigma=0.5, gamma=0.3, gamma_sigma=0.25, rho=0.1)
    average, weights = np.zeros((3, 50)), np.full(3, 1 / 3)
    for step in range(1, 9):
        matrix = jacobian(step, 3) * torch.tensor([[1.0], [2.0], [0.3]])
        average += 0.6 / step**0.5 * (matrix.numpy() - average)
        products = average @ average.T
        slope = products @ weights / products.diagonal().mean() + 0.1 * weights
        weights = project_to_simplex(weights - 0.3 / step**0.25 * slope)
        assert weighting(matrix, torch.ones(3)) == pytest.approx(weights @ average, rel=1e-9)


def test_moco_finds_the_min_norm_point_of_gradients_that_stay() -> None:
    matrix = jacobian(5, 4) - 0.5 * jacobian(6, 1)
    weighting = MoCo(tiny_tasks(4), beta=1.0, beta_sigma=0.0, gamma=0.3, gamma_sigma=0.0)
    for _ in range(3000):
        update = weighting(matrix, torch.ones(4))
    gram = (matrix @ matrix.T).numpy()
    best = min_norm_point(gram)
    assert update @ update == pytest.approx(best @ gram @ best, rel=1e-6)


def test_moco_shares_the_weight_of_the_tasks_at_hand() -> None:
    weighting = MoCo(tiny_tasks(3))
    weighting(jacobian(0, 3), torch.ones(3))
    before = weighting.weights.clone(), weighting.running.clone()
    weighting.active = torch.tensor([0, 2])
    weighting(jacobian(1, 2), torch.ones(2))
    assert weighting.weights[1] == before[0][1]
    assert weighting.weights.sum() == pytest.approx(1)
    assert torch.equal(weighting.running[1], before[1][1])
    assert not torch.equal(weighting.running[0], before[1][0])


# ---- what several of them do in machine code -------------------------------------------------------------


LENGTHS = [0, 1, 2047, 2049, 16_384, 16_385, 60_001]
"""Around the stretches and pieces of machine code; of three rows and more, the last is shared by threads."""


@pytest.fixture
def two_threads(set_threads: Callable[[int], None]) -> None:
    set_threads(2)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("width", LENGTHS)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_of_rows_of_any_number_and_length(count: int, width: int, dtype: torch.dtype) -> None:
    rows = jacobian(3, count, max(width, 1))[:, :width].to(dtype).contiguous()
    weights = [1.0, -2.0, 0.0, 0.5, 4.0, 0.25, -1.0, 8.0, 3.0][:count]
    expected = torch.tensor(weights, dtype=torch.float64) @ rows.double()
    found = weighted_sum(rows, weights)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=200 * torch.finfo(dtype).eps)
    apart = torch.stack([rows, rows + 1], dim=2)[..., 0]  # with gaps, so not for machine code
    torch.testing.assert_close(
        weighted_sum(apart, weights).double(), expected, rtol=0, atol=200 * torch.finfo(dtype).eps
    )


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("width", LENGTHS[1:])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("weighted", [False, True])
def test_averages_and_their_products_in_one_pass(count: int, width: int, weighted: bool) -> None:
    state, averages = GradientState(tiny_tasks(count)), torch.zeros(count, width, dtype=torch.float64)
    shares = [0.25, 0.5, 1.0, 0.125, 2.0][:count]
    weights = [1.0, -2.0, 0.0, 0.5, 4.0][:count] if weighted else []
    for seed in range(2):
        gradients = jacobian(seed, count, width).float()
        averages = 0.5 * averages + torch.tensor(shares, dtype=torch.float64)[:, None] * gradients
        rows, sums = state.average(gradients, 0.5, shares, weights)
    products = averages @ averages.T
    expected = [
        products.diagonal().tolist(),
        (products @ torch.tensor(weights or [0.0] * count).double()).tolist(),
    ]
    torch.testing.assert_close(rows.double(), averages, rtol=0, atol=1e-6)
    np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-5 * width)


def test_averages_of_more_tasks_than_there_are_gradients_of_are_refused() -> None:
    state = GradientState(tiny_tasks(3))
    state.average(torch.ones(3, 5), 0.5, [0.5] * 3)
    with pytest.raises(RuntimeError, match="size"):
        state.average(torch.ones(2, 5), 0.5, [0.5] * 2)  # though all three are active


# ---- db-mtl ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_db_mtl_is_the_papers_recursion(sigma: float) -> None:
    weighting, average = DBMTL(tiny_tasks(3), beta_sigma=sigma), np.zeros((3, 50))
    for step in range(1, 9):
        matrix, losses = jacobian(step, 3), torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64) / step
        keep = 0.9 / step**sigma
        average = keep * average + (1 - keep) * (matrix / losses[:, None]).numpy()
        lengths = np.linalg.norm(average, axis=1)
        expected = (lengths.max() / lengths) @ average
        assert weighting(matrix, losses) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("losses", [[0.0, 1.0], [-1.0, 1.0], [0.0, 0.0]])
def test_db_mtl_stands_losses_that_are_not_positive(losses: list[float]) -> None:
    assert DBMTL(tiny_tasks(2))(jacobian(0, 2), torch.tensor(losses)).isfinite().all()


# ---- excess ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_size", [0.01, 1.0])
def test_excess_is_torchjds_after_one_step_of_warm_up(step_size: float) -> None:
    ours = ExcessMTL(tiny_tasks(3), robust_step_size=step_size)
    theirs = aggregation.ExcessMTL(robust_step_size=step_size, n_warmup_steps=1)
    for step in range(10):
        matrix = jacobian(step, 3) * torch.tensor([[1.0], [2.0], [0.3 * step + 1]])
        # theirs adds 1e-7 under the root and to the first excess
        assert ours(matrix, torch.ones(3)) == pytest.approx(theirs(matrix), rel=1e-4, abs=1e-5)


def test_excess_gives_weight_to_the_task_that_does_not_converge() -> None:
    weighting = ExcessMTL(tiny_tasks(2), robust_step_size=0.1)
    for step in range(50):
        weighting(jacobian(step, 2) * torch.tensor([[1.0], [0.8**step]]), torch.ones(2))
    first, second = weighting.log_weights.softmax(0).tolist()
    assert first > 0.6 > 0.4 > second


# ---- state -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", STATEFUL)
def test_the_running_gradients_survive_a_checkpoint_at_any_time(cls) -> None:
    first = cls(tiny_tasks(3))
    for steps in (0, 1, 3):
        for step in range(steps):
            first(jacobian(step, 3), torch.ones(3))
        resumed = cls(tiny_tasks(3))
        resumed.load_state_dict(first.state_dict())
        inside = torch.nn.ModuleDict({"a": cls(tiny_tasks(3))})
        inside.load_state_dict(torch.nn.ModuleDict({"a": first}).state_dict())
        assert torch.equal(resumed.running, first.running)
        assert torch.equal(inside["a"].running, first.running)
    expected, found = first(jacobian(9, 3), torch.ones(3)), resumed(jacobian(9, 3), torch.ones(3))
    assert torch.equal(expected, found)


@pytest.mark.parametrize("cls", STATEFUL)
def test_a_checkpoint_of_other_tasks_is_refused(cls) -> None:
    first = cls(tiny_tasks(3))
    first(jacobian(0, 3), torch.ones(3))
    with pytest.raises(RuntimeError, match="size mismatch for running"):
        cls(tiny_tasks(2)).load_state_dict(first.state_dict())


@pytest.mark.parametrize("cls", STATEFUL)
def test_gradients_of_another_length_are_named(cls) -> None:
    weighting = cls(tiny_tasks(2))
    weighting(jacobian(0, 2, 8), torch.ones(2))
    with pytest.raises(MtlbenchError, match="changed from 8 to 6: use --grad parameters"):
        weighting(jacobian(0, 2, 6), torch.ones(2))


@pytest.mark.parametrize("cls", STATEFUL)
def test_steps_of_any_scale_leave_finite_updates(cls) -> None:
    for dtype in (torch.float32, torch.float64):
        weighting = cls(tiny_tasks(5))
        for matrix in matrix_zoo():
            if matrix.count == 5 and matrix.jacobian.shape[1] == 20:
                update = weighting(matrix.jacobian.to(dtype), matrix.losses.to(dtype))
                assert update.isfinite().all(), matrix.name


@pytest.mark.parametrize(
    ("cls", "parameters", "message"),
    [
        (MoCo, {"beta": 0.0}, "moco: beta must be above 0 and at most 1"),
        (MoCo, {"gamma": -1.0}, "moco: gamma must be a number >= 0"),
        (DBMTL, {"beta": 1.0}, "db-mtl: beta must be from 0 to below 1"),
        (DBMTL, {"beta_sigma": -1.0}, "db-mtl: beta_sigma must be a number >= 0"),
        (ExcessMTL, {"robust_step_size": math.inf}, "excess: robust_step_size must be a number >= 0"),
    ],
)
def test_wrong_parameters_are_named(cls, parameters, message: str) -> None:
    with pytest.raises(MtlbenchError, match=message):
        cls(tiny_tasks(2), **parameters)


def test_heads_of_db_mtl_follow_the_log_losses_and_those_of_excess_the_weights() -> None:
    jacobian, losses = torch.eye(3, 5), torch.tensor([0.5, 2.0, 4.0])
    logs = DBMTL(tiny_tasks(3))
    logs(jacobian, losses)
    assert logs.head_weights.tolist() == [2.0, 0.5, 0.25]
    excess = ExcessMTL(tiny_tasks(3), robust_step_size=1.0)
    for scale in (1.0, 0.3, 0.2):
        update = excess(jacobian * torch.tensor([1.0, scale, 1.0])[:, None], losses)
    assert excess.head_weights == pytest.approx(update[:3].double() / torch.tensor([1.0, 0.2, 1.0]), rel=1e-6)
    assert excess.head_weights[1] < excess.head_weights[0]
