"""cov and dtp: weights from statistics of the losses seen so far."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mtlbench.errors import MtlbenchError, RunFailedError
from mtlbench.testing import check_weighting, tiny_tasks
from mtlbench_zoo.weightings.cov import CoV
from mtlbench_zoo.weightings.dtp import DTP

TASKS = tiny_tasks(3)


def course(number: int = 20, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(number, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.logspace(-1, 1, 3, dtype=torch.float64) * (0.5 * noise).exp()


def live(weighting, losses: torch.Tensor) -> torch.Tensor:
    return torch.stack([weighting(row) for row in losses])


@pytest.mark.parametrize(
    ("cls", "parameters"), [(CoV, {}), (DTP, {}), (DTP, {"gamma": 0.0, "alpha": 1.0}), (DTP, {"gamma": 5.0})]
)
def test_conformance(cls, parameters) -> None:
    check_weighting(cls, **parameters)


def test_cov_is_the_normalised_coefficient_of_variation() -> None:
    losses = course()
    weights, rows = live(CoV(TASKS), losses), losses.numpy()
    ratios = np.ones_like(rows)
    for step in range(1, len(rows)):
        ratios[step] = rows[step] / rows[:step].mean(0)
    assert weights[:2] == pytest.approx(torch.full((2, 3), 1 / 3))
    for step in range(2, len(rows)):
        seen = ratios[:step]
        variation = np.sqrt(seen.var(0) + 1e-8) / seen.mean(0)
        assert weights[step].numpy() == pytest.approx(variation / variation.sum(), rel=1e-9)


def test_cov_of_losses_that_do_not_move_is_even() -> None:
    weights = live(CoV(TASKS), torch.tensor([[1.0, 2.0, 3.0]]).repeat(5, 1))
    assert weights == pytest.approx(torch.full((5, 3), 1 / 3))


def test_cov_counts_each_task_by_itself() -> None:
    losses, weighting = course(), CoV(TASKS)
    for row in losses:
        weighting.active = torch.arange(3)
        weighting(row)
        weighting.active = torch.tensor([0, 2])
        weighting(row[[0, 2]])
    assert weighting.count.tolist() == [40, 20, 40]
    assert weighting.loss_mean == pytest.approx(losses.mean(0))
    alone = CoV(tiny_tasks(1))
    live(alone, losses[:, 1:2])
    assert weighting.ratio_spread[1].item() == pytest.approx(alone.ratio_spread.item())


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_dtp_is_the_focal_weight_of_the_running_indicator(gamma: float, alpha: float) -> None:
    losses = course()
    weights, kpi = live(DTP(TASKS, gamma, alpha), losses), None
    for row, found in zip(losses, weights, strict=True):
        now = (-row / losses[0]).exp()
        kpi = now if kpi is None else (1 - alpha) * kpi + alpha * now
        assert found == pytest.approx(-((1 - kpi) ** gamma) * kpi.log(), rel=1e-9)


def test_dtp_starts_even_and_prefers_what_is_still_hard() -> None:
    weighting = DTP(TASKS, alpha=1.0)
    start = weighting(torch.tensor([0.01, 1.0, 100.0]))
    assert start == pytest.approx(torch.full((3,), (1 - math.exp(-1)) ** 2))
    easy, _, hard = weighting(torch.tensor([0.001, 0.5, 99.0])).tolist()
    assert hard > 50 * easy > 0


def test_dtp_keeps_digits_of_a_nearly_solved_task() -> None:
    weighting = DTP(tiny_tasks(1), gamma=1.0, alpha=1.0)
    weighting(torch.ones(1, dtype=torch.float64))
    weights = weighting(torch.full((1,), 1e-12, dtype=torch.float64))
    assert weights.item() == pytest.approx(1e-24, rel=1e-9)


def test_dtp_of_a_solved_and_of_a_hopeless_task() -> None:
    weighting = DTP(TASKS, alpha=1.0)
    assert weighting(torch.tensor([0.0, 1.0, 1e-20]))[0] == 0
    solved, reference, hopeless = weighting(torch.tensor([0.0, 1.0, 1e20])).tolist()
    assert solved == 0
    assert reference < hopeless < 37
    late, *_ = weighting(torch.tensor([3.0, 1.0, 1e20])).tolist()  # the first loss above 0
    assert late == pytest.approx(reference)


@pytest.mark.parametrize("cls", [CoV, DTP])
@pytest.mark.parametrize("factor", [1e-20, 1e-6, 1e6, 1e20])
def test_the_course_is_scale_free(cls, factor: float) -> None:
    expected = live(cls(TASKS), course())
    assert live(cls(TASKS), course() * factor) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("cls", [CoV, DTP])
def test_odd_losses_leave_no_trace_of_nan(cls) -> None:
    rows = [[0.0, 1.0, 1e-20], [0.0, 0.0, 1e20], [1.0, 0.0, 1e-20], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    weights = live(cls(TASKS), torch.tensor(rows))
    assert weights.isfinite().all()
    assert (weights >= 0).all()


@pytest.mark.parametrize("cls", [CoV, DTP])
def test_resume_within_an_epoch_is_exact(cls) -> None:
    first, resumed = cls(TASKS), cls(TASKS)
    live(first, course())
    resumed.load_state_dict(first.state_dict())
    assert torch.equal(live(first, course(seed=1)), live(resumed, course(seed=1)))


@pytest.mark.parametrize("cls", [CoV, DTP])
def test_a_negative_loss_ends_the_run(cls) -> None:
    with pytest.raises(RunFailedError, match=f"{cls.__name__} takes losses >= 0, but the loss of task1"):
        cls(TASKS)(torch.tensor([1.0, -1.0, 1.0]))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"gamma": -1.0}, "dtp: gamma must be a finite number >= 0, got -1.0"),
        ({"alpha": 0.0}, "dtp: alpha must be a number above 0 and up to 1, got 0.0"),
        ({"alpha": math.nan}, "dtp: alpha must be a number above 0 and up to 1, got nan"),
    ],
)
def test_wrong_parameters_are_explained(parameters, message: str) -> None:
    with pytest.raises(MtlbenchError, match=f"^{message}$"):
        DTP(TASKS, **parameters)
