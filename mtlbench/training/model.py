"""An architecture with one head a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtlbench.contracts import Architecture, Dataset, Encoder, Task, Weighting
from mtlbench.errors import MtlbenchError, did_you_mean
from mtlbench.gradients import GradientEngine
from mtlbench.heads import build_head, he_initialise
from mtlbench.registry import Choice, Registry
from mtlbench.training.seeds import derive, stream


class MultiTaskModel(nn.Module):
    """Architecture and heads; ``forward`` gives the outputs of the tasks by name."""

    def __init__(self, architecture: Architecture, heads: nn.ModuleDict) -> None:
        super().__init__()
        self.architecture = architecture
        self.heads = heads

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return the outputs of ``tasks`` (None: of all) for the input ``x`` ``[B, C, H, W]``."""
        features = self.architecture(x, tasks)
        size = tuple(x.shape[2:])
        return {task: self.heads[task](pyramid, size) for task, pyramid in features.pyramids.items()}


@dataclass(frozen=True)
class Run:
    """One architecture, weighting, encoder, dataset, protocol and seed: what is trained and tested once.

    probe: on every so-manieth step the task gradients are compared, also for a method that has no use for
    them; 0 for never. It changes what is logged and no result, so it is no part of what the run is.
    """

    architecture: Choice
    weighting: Choice
    encoder: Choice
    dataset: Choice
    tasks: tuple[str, ...]
    grad: Literal["parameters", "features"]
    scale: Literal["published", "sum", "mean"]
    seed: int
    protocol: dict[str, Any]
    registry: Registry = field(repr=False, compare=False)
    probe: int = field(default=0, compare=False)

    @property
    def name(self) -> str:
        """``architecture+weighting``, the folder of the record."""
        return f"{self.architecture.plugin.name}+{self.weighting.plugin.name}"

    @property
    def label(self) -> str:
        """What people read: both specs, the task where it is only one, and the seed."""
        alone = f" ({self.tasks[0]})" if len(self.tasks) == 1 else ""
        return f"{self.architecture} + {self.weighting}{alone}, seed {self.seed}"


def choose_tasks(dataset: Dataset, names: Sequence[str]) -> tuple[Task, ...]:
    """Return the dataset's tasks of these names, in the dataset's order."""
    known = [task.name for task in dataset.tasks]
    for name in names:
        if name not in known:
            raise MtlbenchError(
                f"{dataset.title} has no task '{name}'.{did_you_mean(name, known)} Tasks: {', '.join(known)}"
            )
    return tuple(task for task in dataset.tasks if task.name in names)


def build(run: Run, dataset: Dataset) -> tuple[MultiTaskModel, Weighting]:
    """Build the model and the weighting of ``run``, each part from its own random stream."""
    tasks = choose_tasks(dataset, run.tasks)
    he = run.protocol["init"] == "he"
    copies = 0

    def encoder(task: str | None = None) -> Encoder:
        nonlocal copies
        with stream(run.seed, "encoder", copies):
            built: Encoder = run.encoder.build(in_channels=dataset.input_shape[0])
            if he:
                he_initialise(built)
        copies += 1
        return built

    with stream(run.seed, "architecture"):
        architecture: Architecture = run.architecture.build(encoder=encoder, tasks=tasks)
    heads = nn.ModuleDict()
    for task in tasks:
        with stream(run.seed, "head", task.name):
            head = build_head(task.output, architecture.shape(task.name))
            if he:
                he_initialise(head)
        heads[task.name] = head

    def inner(spec: str) -> Weighting:
        found: Weighting = run.registry.choose("weightings", spec).build(tasks=tasks, weightings=inner)
        return found

    with stream(run.seed, "weighting"):
        weighting: Weighting = run.weighting.build(tasks=tasks, weightings=inner)
    for number, part in enumerate(m for m in weighting.modules() if isinstance(m, Weighting)):
        part.active = torch.arange(len(tasks))
        part.generator.manual_seed(derive(run.seed, "weighting", "draws", number))
    return MultiTaskModel(architecture, heads), weighting


def build_engine(run: Run, dataset: Dataset, model: MultiTaskModel, weighting: Weighting) -> GradientEngine:
    """Return the engine that computes the updates of ``run``; refuses what does not fit together."""
    return GradientEngine(
        model.architecture,
        {name: model.heads[name] for name in run.tasks},
        choose_tasks(dataset, run.tasks),
        weighting,
        run.grad,
        dataset.per_task,
        run.scale,
    )
