"""Every architecture of the registry with every kind of encoder trains under both kinds of weighting."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlbench.contracts import Architecture, Batch, Features, Map, Task, Vector
from mtlbench.gradients import GradientEngine
from mtlbench.heads import build_head
from mtlbench.losses import L1, BinaryCrossEntropy, CrossEntropy
from mtlbench.registry import Registry

REGISTRY = Registry()
NAMES = [plugin.name for plugin in REGISTRY.plugins("architectures")]
ENCODERS = {"unet": "unet[depth=3,width=4]", "resnet18": "resnet18", "conv": "conv[width=4]"}
TASKS = (
    Task("mask", Map(1), BinaryCrossEntropy(), ()),
    Task("kind", Vector(2), CrossEntropy(), ()),
    Task("box", Vector(4), L1(), ()),
)


def build(name: str, encoder: str, tasks: tuple[Task, ...]) -> Architecture:
    torch.manual_seed(0)
    chosen = REGISTRY.choose("encoders", ENCODERS[encoder])
    made: Architecture = REGISTRY.choose("architectures", name).build(
        encoder=lambda task=None: chosen.build(in_channels=3), tasks=tasks
    )
    return made


def samples(size: int, batch: int = 2) -> Batch:
    draw = torch.Generator().manual_seed(1)
    targets = {
        "mask": torch.randint(0, 2, (batch, size, size), generator=draw),
        "kind": torch.arange(batch) % 2,
        "box": torch.rand(batch, 4, generator=draw),
    }
    return Batch(torch.rand(batch, 3, size, size, generator=draw), targets)


def same(one: Features, other: Features, **tolerance: float) -> None:
    for task, pyramid in one.pyramids.items():
        for a, b in zip(pyramid, other.pyramids[task], strict=True):
            torch.testing.assert_close(a, b, **(tolerance or {"rtol": 0.0, "atol": 0.0}))


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("name", NAMES)
def test_three_steps(name: str, encoder: str) -> None:
    """Every parameter is trained, eval is deterministic, layout plays no part, a checkpoint restores all."""
    tasks = TASKS[:2] if encoder == "resnet18" else TASKS  # the largest of them
    architecture = build(name, encoder, tasks)
    heads = nn.ModuleDict({t.name: build_head(t.output, architecture.shape(t.name)) for t in tasks})
    whole = nn.ModuleList([architecture, heads])
    batch = samples(32 if encoder == "resnet18" else 16)
    for weight in ("ew", "mgda"):
        weighting = REGISTRY.choose("weightings", weight).build(tasks=tasks)
        engine = GradientEngine(architecture, dict(heads.items()), tasks, weighting)
        train(engine, whole, batch, steps=60 if name == "ltb" else 3)  # ltb samples what it trains
    architecture.eval()
    with torch.no_grad():
        first = architecture(batch.inputs)
        assert all(level.isfinite().all() for pyramid in first.pyramids.values() for level in pyramid)
        same(first, architecture(batch.inputs))
        if encoder != "resnet18":  # nothing new, and it takes long to initialise
            fresh = build(name, encoder, tasks).eval()
            fresh.load_state_dict(copy.deepcopy(architecture.state_dict()))
            same(first, fresh(batch.inputs))
        architecture.to(memory_format=torch.channels_last)
        again = architecture(batch.inputs.contiguous(memory_format=torch.channels_last))
        same(first, again, rtol=1e-3, atol=1e-4)


def train(engine: GradientEngine, whole: nn.Module, batch: Batch, steps: int) -> None:
    """Make ``steps`` steps, three at least, and fewer when all parameters have had a gradient by then."""
    optimizer = torch.optim.SGD(whole.parameters(), lr=1e-3)
    untrained = {name for name, _ in whole.named_parameters()}
    for step in range(steps):
        if step >= 3 and not untrained:
            break
        optimizer.zero_grad()
        losses = engine.step(batch).losses
        assert losses.isfinite().all()
        optimizer.step()
        untrained -= {n for n, p in whole.named_parameters() if p.grad is not None and p.grad.any()}
    assert not untrained


@pytest.mark.parametrize("name", NAMES)
def test_a_task_can_be_taken_from_the_list(name: str) -> None:
    """It costs no parameters then, and the others go on as before."""
    whole, fewer = (build(name, "conv", tasks) for tasks in (TASKS, TASKS[:2]))
    assert list(fewer(samples(16).inputs).pyramids) == ["mask", "kind"]
    assert count(fewer) < count(whole) or name == "hps"


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", ["mtan", "dselect-k", "ltb"])
def test_the_graph_of_a_training_step_can_be_captured_whole(name: str, recompiled: Any) -> None:
    """What `torch.compile` needs, for the three that do most beside running stages."""
    architecture = build(name, "conv", TASKS[1:])
    x = samples(16).inputs

    def features(x: Tensor) -> Tensor:
        pyramid = architecture(x).pyramids["box"]
        return pyramid[-1]

    captured = torch.compile(features, backend="eager", fullgraph=True)
    torch.manual_seed(0)
    expected = features(x)
    torch.manual_seed(0)
    torch.testing.assert_close(captured(x), expected)


@pytest.fixture
def recompiled() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()
