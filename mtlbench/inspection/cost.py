"""What architectures cost: parameters, operations of a forward pass, time of a training step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mtlbench.config import Protocol
from mtlbench.contracts import Architecture, Batch, Encoder, Map, Output, Task, Vector
from mtlbench.errors import MtlbenchError
from mtlbench.gradients import GradientEngine
from mtlbench.heads import build_head
from mtlbench.losses import L1, BinaryCrossEntropy, CrossEntropy
from mtlbench.registry import Choice, Registry
from mtlbench.training.model import MultiTaskModel
from mtlbench.training.optim import build_optimizer

REFERENCE = "hps"
WARM_UP = 2


@dataclass(frozen=True)
class ArchitectureCost:
    """One row of the table; an architecture is what lies below the heads.

    parameters: trainable ones. flops: of one forward pass on one image; a multiplication and an addition are
    two. flops_with_heads: the same with the tasks' heads. ms, relative: median time of a training step with
    equal weighting, heads and optimiser included, and the median over rounds of its ratio to hps; None where
    it was not measured. refused: why the architecture was not built.
    """

    name: str
    parameters: int = 0
    flops: int = 0
    flops_with_heads: int = 0
    ms: float | None = None
    relative: float | None = None
    refused: str | None = None


def tasks_of(count: int) -> tuple[Task, ...]:
    """Return ``count`` tasks, in turn a mask, a class and a box, as in pets."""
    kinds: tuple[tuple[str, Output, BinaryCrossEntropy | CrossEntropy | L1], ...] = (
        ("segmentation", Map(1), BinaryCrossEntropy()),
        ("classification", Vector(2), CrossEntropy()),
        ("bbox", Vector(4), L1()),
    )
    found = []
    for index in range(count):
        name, output, loss = kinds[index % 3]
        found.append(Task(name if index < 3 else f"{name}{index // 3 + 1}", output, loss, ()))
    return tuple(found)


def architecture_costs(
    registry: Registry,
    names: Sequence[str],
    encoder: str,
    tasks: int = 3,
    size: int = 64,
    batch_size: int = 16,
    rounds: int = 10,
) -> list[ArchitectureCost]:
    """Return what each of ``names`` (specs) costs, hps first.

    rounds: training steps that are timed; in each round all architectures take turns, so that a busy machine
    slows them alike. 0 times nothing: then equal calls give equal numbers.
    """
    backbone = registry.choose("encoders", encoder)
    wanted = tasks_of(tasks)
    specs = list(dict.fromkeys([REFERENCE, *names]))
    built: dict[str, MultiTaskModel] = {}
    flops: dict[str, tuple[int, int]] = {}
    refused: dict[str, str] = {}
    for spec in specs:
        try:
            model = _build(registry.choose("architectures", spec), backbone, wanted)
            flops[spec] = _flops(model, size)  # what cannot read the encoder's features says so here
            built[spec] = model
        except MtlbenchError as error:
            if spec == REFERENCE or len(names) == 1:
                raise
            refused[spec] = str(error)
    batch = _batch(wanted, size, batch_size)
    steps = {spec: _step(registry, model, wanted, batch) for spec, model in built.items()}
    times = _time(steps, rounds) if rounds else {}
    reference = times.get(REFERENCE, [])
    rows = []
    for spec in specs:
        if spec in refused:
            rows.append(ArchitectureCost(spec, refused=refused[spec]))
            continue
        found = times.get(spec)
        rows.append(
            ArchitectureCost(
                spec,
                sum(p.numel() for p in built[spec].architecture.parameters() if p.requires_grad),
                *flops[spec],
                statistics.median(found) if found else None,
                statistics.median(a / b for a, b in zip(found, reference, strict=True)) if found else None,
            )
        )
    return rows


def _build(choice: Choice, backbone: Choice, tasks: Sequence[Task]) -> MultiTaskModel:
    def encoder(task: str | None = None) -> Encoder:
        made: Encoder = backbone.build(in_channels=3)
        return made

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        architecture: Architecture = choice.build(encoder=encoder, tasks=tasks)
        try:
            heads = {task.name: build_head(task.output, architecture.shape(task.name)) for task in tasks}
        except MtlbenchError as error:
            raise MtlbenchError(f"encoder '{backbone}': {error}") from None
    return MultiTaskModel(architecture, nn.ModuleDict(heads))


@torch.no_grad()
def _flops(model: MultiTaskModel, size: int) -> tuple[int, int]:
    """Return the operations of a forward pass on one image, without and with heads."""
    image = torch.zeros(1, 3, size, size)
    model.eval()
    found = []
    for run in (model.architecture, model):
        with FlopCounterMode(display=False) as counter:
            run(image)
        found.append(int(counter.get_total_flops()))
    model.train()
    return found[0], found[1]


def _batch(tasks: Sequence[Task], size: int, batch_size: int) -> Batch:
    draw = torch.Generator().manual_seed(0)
    targets = {}
    for task in tasks:
        if isinstance(task.output, Map):
            targets[task.name] = torch.randint(0, 2, (batch_size, size, size), generator=draw)
        elif isinstance(task.loss, CrossEntropy):
            targets[task.name] = torch.randint(0, task.output.size, (batch_size,), generator=draw)
        else:
            targets[task.name] = torch.rand(batch_size, task.output.size, generator=draw)
    images = torch.rand(batch_size, size, size, 3, generator=draw).permute(
        0, 3, 1, 2
    )  # as datasets give them
    return Batch(images, targets)


def _step(
    registry: Registry, model: MultiTaskModel, tasks: Sequence[Task], batch: Batch
) -> Callable[[], None]:
    weighting = registry.choose("weightings", "ew").build(tasks=tasks)
    engine = GradientEngine(model.architecture, dict(model.heads.items()), tasks, weighting)
    optimizer = build_optimizer(vars(Protocol()), model, weighting)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        engine.step(batch)
        optimizer.step()

    return step


def _time(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return the times of ``rounds`` steps in milliseconds, after some that warm up."""
    times: dict[str, list[float]] = {spec: [] for spec in steps}
    for number in range(WARM_UP + rounds):
        for spec, step in steps.items():
            begin = time.perf_counter()
            step()
            if number >= WARM_UP:
                times[spec].append((time.perf_counter() - begin) * 1e3)
    return times
