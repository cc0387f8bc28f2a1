"""What the engine answers to bilevel methods, against plain autograd on copies of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlbench.contracts import (
    Architecture,
    Batch,
    Encoder,
    Features,
    Lookahead,
    Need,
    PyramidShape,
    Task,
    Vector,
    Weighting,
)
from mtlbench.errors import MtlbenchError, RunFailedError
from mtlbench.gradients import GradientEngine
from mtlbench.losses import MSE

NAMES = "abc"
TASKS = tuple(Task(name, Vector(2), MSE(), ()) for name in NAMES)


class Trunk(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh())])
        self.shape = PyramidShape((6,), (1,))


class Gated(Architecture):
    """One encoder, a gate for task b alone, and a penalty."""

    def __init__(self) -> None:
        super().__init__(Trunk, TASKS)
        self.encoder = Trunk()
        self.gate = nn.Parameter(torch.full((6,), 1.5))

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        (shared,) = self.encoder(x)
        names = self.task_names if tasks is None else tasks
        pyramids = {n: (shared * self.gate if n == "b" else shared,) for n in names}
        return Features(pyramids, None, 0.1 * self.gate.square().sum())

    def shape(self, task: str) -> PyramidShape:
        return self.encoder.shape

    def shared_parameters(self) -> list[nn.Parameter]:
        return list(self.encoder.parameters())


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 2)

    def forward(self, pyramid: tuple[Tensor, ...], size: tuple[int, ...]) -> Tensor:
        out: Tensor = self.linear(pyramid[0])
        return out


class Asking(Weighting):
    """Asks one question and answers given weights."""

    needs = Need.BILEVEL

    def __init__(self, question: Callable[[Lookahead], Any], weights: Tensor) -> None:
        super().__init__(TASKS)
        self.question, self.weights = question, weights

    def forward(self, ahead: Lookahead, losses: Tensor) -> Tensor:
        self.rate, self.losses, self.seen = ahead.rate, losses, self.question(ahead)
        return self.weights[..., self.active]


def model() -> nn.ModuleDict:
    torch.manual_seed(5)
    return nn.ModuleDict({"trunk": Gated(), "heads": nn.ModuleDict({n: Head() for n in NAMES})}).double()


def batches() -> list[Batch]:
    torch.manual_seed(6)
    made = []
    for _ in range(2):
        inputs = torch.randn(8, 5, dtype=torch.float64)
        made.append(Batch(inputs, {n: torch.randn(8, 2, dtype=torch.float64) for n in NAMES}))
    return made


def losses_of(net: nn.ModuleDict, batch: Batch) -> list[Tensor]:
    features = net["trunk"](batch.inputs)
    return [MSE()(net["heads"][n](features.pyramids[n], ()), batch.targets[n]) for n in NAMES]


def jacobian(net: nn.ModuleDict, batch: Batch) -> Tensor:
    """The gradients of all tasks by all parameters, [3, P]."""
    parameters = list(net.parameters())
    rows = []
    for loss in losses_of(net, batch):
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        rows.append(torch.cat([g.flatten() for g in parts]))
    return torch.stack(rows)


def moved(net: nn.ModuleDict, direction: Tensor) -> nn.ModuleDict:
    """A copy of the model, moved against ``direction`` [P]."""
    other = copy.deepcopy(net)
    parameters = list(other.parameters())
    parts = torch.split(direction, [p.numel() for p in parameters])
    with torch.no_grad():
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.sub_(part.view_as(parameter))
    return other


STEPS = torch.tensor([0.05, 0.2, 0.1], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 1.2, 0.7], dtype=torch.float64)


def stepped(question: Callable[[Lookahead], Any], weights: Tensor = WEIGHTS) -> tuple[Any, ...]:
    net, (train, held) = model(), batches()
    before = copy.deepcopy(net)
    weighting = Asking(question, weights)
    engine = GradientEngine(net["trunk"], dict(net["heads"].items()), TASKS, weighting)
    step = engine.step(train, others=[held], rate=0.25)
    assert weighting.rate == 0.25
    assert weighting.losses.equal(torch.stack(losses_of(before, train)).detach())
    return net, before, train, held, weighting.seen, step


def gradient(net: nn.ModuleDict) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def penalty_gradient(net: nn.ModuleDict) -> Tensor:
    found = [0.2 * p if n == "trunk.gate" else torch.zeros_like(p) for n, p in net.named_parameters()]
    return torch.cat([g.detach().flatten() for g in found])


def test_gradients_where_a_step_leads_are_compared_with_those_here() -> None:
    net, before, train, held, (cross, losses), step = stepped(lambda ahead: ahead.cross(STEPS))
    here = jacobian(before, train)
    there = moved(before, STEPS @ here)
    torch.testing.assert_close(cross, here @ jacobian(there, held).T)
    torch.testing.assert_close(losses, torch.stack(losses_of(there, held)).detach())
    torch.testing.assert_close(gradient(net), WEIGHTS @ here + penalty_gradient(before))
    assert step.weights.tolist() == WEIGHTS.tolist()


def test_weights_of_two_batches_train_on_both() -> None:
    weights = torch.stack([WEIGHTS, torch.tensor([2.0, 0.0, 0.5], dtype=torch.float64)])
    net, before, train, held, gram, step = stepped(lambda ahead: ahead.gram(), weights)
    rows = torch.cat([jacobian(before, train), jacobian(before, held)])
    torch.testing.assert_close(gram, rows @ rows.T)
    torch.testing.assert_close(gradient(net), weights.flatten() @ rows + penalty_gradient(before))
    assert step.weights.tolist() == weights.sum(0).tolist()


@pytest.mark.parametrize("count", [1, 3])
def test_losses_after_several_moves(count: int) -> None:
    _, before, train, _, losses, _ = stepped(lambda ahead: ahead.losses(STEPS, count))
    there = before
    for _ in range(count):
        there = moved(there, STEPS @ jacobian(there, train))
    torch.testing.assert_close(losses, torch.stack(losses_of(there, train)).detach())


def test_a_question_leaves_no_trace() -> None:
    """The model's values are the same bits; running statistics have seen the training batch once."""
    questions = [
        lambda ahead: ahead.cross(STEPS),
        lambda ahead: (ahead.gram(), ahead.cross(STEPS), ahead.losses(STEPS, 2)),
    ]
    for question in questions:
        net, before, *_ = stepped(question)  # `before` has seen the batch once by now, too
        for (name, found), expected in zip(
            net.state_dict().items(), before.state_dict().values(), strict=True
        ):
            assert found.equal(expected), name
        silent, *_ = stepped(lambda ahead: None)
        assert gradient(net).equal(gradient(silent))


def test_a_task_without_labels_takes_no_part() -> None:
    net, (train, held) = model(), batches()
    weighting = Asking(lambda ahead: ahead.cross(STEPS[:2]), WEIGHTS)
    engine = GradientEngine(net["trunk"], dict(net["heads"].items()), TASKS, weighting)
    step = engine.step(train, ["a", "c"], others=[held], rate=0.1)
    assert weighting.seen[0].shape == (2, 2)
    assert all(p.grad is None for p in net["heads"]["b"].parameters())
    assert step.losses.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("count", [1, 4])
def test_a_step_that_leads_out_of_the_numbers_is_told(count: int) -> None:
    with pytest.raises(RunFailedError, match="a step ahead leads to losses that are not finite"):
        stepped(lambda ahead: ahead.losses(STEPS * 1e90, count))


def test_held_out_losses_that_are_no_numbers_are_told() -> None:
    net, (train, held) = model(), batches()
    held = Batch(held.inputs * torch.nan, held.targets)
    engine = GradientEngine(
        net["trunk"], dict(net["heads"].items()), TASKS, Asking(lambda ahead: ahead.gram(), WEIGHTS)
    )
    with pytest.raises(RunFailedError, match="losses of the held-out batch are not finite"):
        engine.step(train, others=[held], rate=0.1)


def test_heads_are_weighted_and_features_refused() -> None:
    net = model()
    parts = net["trunk"], dict(net["heads"].items()), TASKS
    weighting = Asking(lambda ahead: None, WEIGHTS)
    with pytest.raises(MtlbenchError, match="compares gradients of several batches"):
        GradientEngine(*parts, weighting, "features")
    weighting.heads = "unweighted"  # type: ignore[misc]
    with pytest.raises(MtlbenchError, match="trains heads by its weights too"):
        GradientEngine(*parts, weighting)


def test_batches_in_parts_answer_as_whole_ones() -> None:
    found = []
    for cut in (False, True):
        net, pair = model().eval(), batches()
        parts: list[Any] = [
            [Batch(b.inputs[i], {n: t[i] for n, t in b.targets.items()}) for i in (slice(3), slice(3, 8))]
            if cut
            else b
            for b in pair
        ]
        weights = torch.stack([WEIGHTS, WEIGHTS])
        weighting = Asking(lambda ahead: (ahead.gram(), *ahead.cross(STEPS), ahead.losses(STEPS, 2)), weights)
        engine = GradientEngine(net["trunk"], dict(net["heads"].items()), TASKS, weighting)
        engine.step(parts[0], others=[parts[1]])
        found.append([*weighting.seen, gradient(net)])
    for whole, in_parts in zip(*found, strict=True):
        torch.testing.assert_close(in_parts, whole)
