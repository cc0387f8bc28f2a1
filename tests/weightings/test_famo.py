"""famo: its weights, and its logits against torch's Adam and TorchJD."""

from __future__ import annotations

import math

import pytest
import torch
from torchjd.scalarization import FAMO as TheirFAMO

from mtlbench.errors import MtlbenchError, RunFailedError
from mtlbench.testing import check_weighting, tiny_tasks
from mtlbench_zoo.weightings.famo import FAMO

TASKS = tiny_tasks(3)
LOSSES = torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64)


def steps(number: int = 30, count: int = 3, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    size = torch.logspace(-1, 1, count, dtype=torch.float64)
    return [
        tuple(size * torch.randn(2, count, dtype=torch.float64, generator=draw).exp()) for _ in range(number)
    ]


def live(weighting: FAMO, pairs, factor: float = 1.0) -> torch.Tensor:
    for before, after in pairs:
        weights = weighting(before * factor)
        weighting.after_step(lambda after=after: after * factor)
    return weights


@pytest.mark.parametrize("parameters", [{}, {"w_lr": 1.0, "gamma": 0.0}])
def test_conformance(parameters) -> None:
    check_weighting(FAMO, **parameters)


def test_weights_are_shares_over_losses() -> None:
    weighting = FAMO(TASKS)
    live(weighting, steps())
    share = weighting.logits.softmax(0) / LOSSES
    assert weighting(LOSSES) == pytest.approx(share / share.sum())
    assert FAMO(TASKS)(LOSSES) == pytest.approx((1 / LOSSES) / (1 / LOSSES).sum())


@pytest.mark.parametrize(("w_lr", "gamma"), [(0.025, 0.001), (0.1, 0.5)])
def test_logits_are_stepped_as_by_torchs_adam(w_lr: float, gamma: float) -> None:
    weighting = FAMO(TASKS, w_lr, gamma)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=w_lr, weight_decay=gamma)
    for before, after in steps():
        live(weighting, [(before, after)])
        adam.zero_grad()
        (logits.softmax(0) @ (before.log() - after.log())).backward()
        adam.step()
        assert weighting.logits == pytest.approx(logits.detach(), rel=1e-12, abs=1e-12)


def test_it_is_torchjds() -> None:
    ours, theirs = FAMO(TASKS), TheirFAMO(3).double()
    for before, after in steps():
        leaf = before.clone().requires_grad_()
        (expected,) = torch.autograd.grad(theirs(leaf), leaf)
        theirs.update(after)
        assert live(ours, [(before, after)]) == pytest.approx(expected, rel=1e-5)  # it adds 1e-8 to losses


def test_a_task_that_improves_less_gains_weight() -> None:
    weighting = FAMO(TASKS)
    live(weighting, [(LOSSES, LOSSES * torch.tensor([0.5, 0.5, 0.9]))] * 5)
    assert weighting.logits[2] > weighting.logits[:2].max()


@pytest.mark.parametrize("factor", [1e-20, 1e-6, 1e6, 1e20])
def test_the_course_is_scale_free(factor: float) -> None:
    ours, other = FAMO(TASKS), FAMO(TASKS)
    assert live(other, steps(), factor) == pytest.approx(live(ours, steps()), rel=1e-9)
    assert other.logits == pytest.approx(ours.logits, rel=1e-9)


def test_a_task_without_labels_or_loss_rests() -> None:
    weighting = FAMO(TASKS)
    live(weighting, steps(3))
    logit = weighting.logits.clone()
    weighting.active = torch.tensor([0, 2])
    live(weighting, [(LOSSES[[0, 2]], LOSSES[[0, 2]] / torch.tensor([2.0, 4.0]))])
    assert weighting.logits[1] == logit[1]
    assert (weighting.logits != logit).tolist() == [True, False, True]
    weighting.active = torch.arange(3)
    logit = weighting.logits.clone()
    live(weighting, [(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([1.0, 0.0, math.inf]))])
    assert torch.equal(weighting.logits, logit)


def test_losses_of_zero() -> None:
    weights = FAMO(TASKS)(torch.tensor([0.0, 1.0, 3.0]))
    assert weights.tolist() == pytest.approx([0, 0.75, 0.25])
    assert not FAMO(TASKS)(torch.zeros(3)).any()


def test_resume_within_an_epoch_is_exact() -> None:
    first, resumed = FAMO(TASKS), FAMO(TASKS)
    live(first, steps(7))
    resumed.load_state_dict(first.state_dict())
    assert torch.equal(live(first, steps(9, seed=1)), live(resumed, steps(9, seed=1)))


def test_a_negative_loss_ends_the_run() -> None:
    weighting = FAMO(TASKS)
    with pytest.raises(RunFailedError, match="FAMO takes losses >= 0, but the loss of task1 is -1"):
        weighting(torch.tensor([1.0, -1.0, 1.0]))
    weighting(LOSSES)
    with pytest.raises(RunFailedError, match="the loss of task2 is -2"):
        weighting.after_step(lambda: torch.tensor([1.0, 1.0, -2.0]))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"w_lr": 0.0}, "famo: w_lr must be a finite number > 0, got 0.0"),
        ({"gamma": -1.0}, "famo: gamma must be a finite number >= 0, got -1.0"),
    ],
)
def test_wrong_parameters_are_explained(parameters, message: str) -> None:
    with pytest.raises(MtlbenchError, match=f"^{message}$"):
        FAMO(TASKS, **parameters)
