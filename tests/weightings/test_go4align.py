"""go4align: indicators, groups and shares."""

from __future__ import annotations

import pytest
import torch

from mtlbench.errors import MtlbenchError, RunFailedError
from mtlbench.testing import check_weighting, tiny_tasks
from mtlbench_zoo.weightings.go4align import GO4Align

TASKS = tiny_tasks(4)
LOSSES = torch.tensor([0.5, 0.6, 2.0, 4.0], dtype=torch.float64)


@pytest.mark.parametrize("parameters", [{}, {"groups": 1}, {"groups": 50}, {"step_size": 1.0}])
def test_conformance(parameters) -> None:
    check_weighting(GO4Align, **parameters)


def test_each_task_of_its_own_is_weighted_by_its_indicator() -> None:
    weighting, share = GO4Align(TASKS, groups=4, step_size=0.3), torch.full((4,), 0.25).double()
    for losses in (LOSSES, 2 * LOSSES, LOSSES.flip(0)):
        share = share * (-0.3 * losses).exp()
        share = share / share.sum()
        assert weighting(losses) == pytest.approx(share * losses.sum() / losses)


def test_a_group_shares_the_mean_of_its_indicators() -> None:
    own = GO4Align(TASKS, groups=4)(LOSSES)
    two = GO4Align(TASKS, groups=2)(LOSSES)
    assert two == pytest.approx(torch.cat([own[:2].mean().expand(2), own[2:].mean().expand(2)]))
    one = GO4Align(TASKS, groups=1)(LOSSES)
    assert one == pytest.approx(own.mean().expand(4))


def test_equal_losses_have_weight_one() -> None:
    assert GO4Align(TASKS)(torch.full((4,), 3.0)).tolist() == pytest.approx([1] * 4)


def test_without_steps_losses_scaled_alike_give_the_same_weights() -> None:
    expected = GO4Align(TASKS, step_size=0.0)(LOSSES)
    for factor in (1e-20, 1e20):
        assert GO4Align(TASKS, step_size=0.0)(LOSSES * factor) == pytest.approx(expected, rel=1e-9)


def test_a_task_without_labels_keeps_its_share() -> None:
    weighting = GO4Align(TASKS, step_size=0.5)
    weighting.active = torch.tensor([0, 3])
    for _ in range(20):
        weighting(LOSSES[[0, 3]])
    share = weighting.log_share.exp()
    assert share[[1, 2]].tolist() == pytest.approx([0.25, 0.25])
    assert share.sum().item() == pytest.approx(1)
    assert share[0] > 0.49


@pytest.mark.parametrize("step_size", [1e-4, 1.0])
def test_odd_losses_leave_no_trace_of_nan(step_size: float) -> None:
    weighting = GO4Align(TASKS, step_size=step_size)
    rows = [[0.0, 1.0, 1e-20, 1.0], [1e20, 0.0, 1e20, 1.0], [1e-20, 1.0, 1e20, 1e20], [1.0, 2.0, 3.0, 4.0]]
    for row in rows:
        losses = torch.tensor(row)
        weights = weighting(losses)
        assert weights.isfinite().all()
        assert (weights >= 0).all()
        assert not weights[losses == 0].any()
    assert not weighting(torch.zeros(4)).any()
    assert weighting.log_share.isfinite().all()


def test_resume_within_an_epoch_is_exact() -> None:
    first, resumed = GO4Align(TASKS, step_size=0.1), GO4Align(TASKS, step_size=0.1)
    first(LOSSES)
    resumed.load_state_dict(first.state_dict())
    for losses in (LOSSES, LOSSES.flip(0)):
        assert torch.equal(first(losses), resumed(losses))


def test_a_negative_loss_ends_the_run() -> None:
    with pytest.raises(RunFailedError, match="GO4Align takes losses >= 0, but the loss of task1 is -1"):
        GO4Align(TASKS)(torch.tensor([1.0, -1.0, 1.0, 1.0]))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"groups": 0}, "go4align: groups must be a number >= 1, got 0"),
        ({"step_size": -1.0}, "go4align: step_size must be a finite number >= 0, got -1.0"),
    ],
)
def test_wrong_parameters_are_explained(parameters, message: str) -> None:
    with pytest.raises(MtlbenchError, match=f"^{message}$"):
        GO4Align(TASKS, **parameters)
