"""An architecture with one head a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtlbench.config import Tuning
from mtlbench.contracts import Architecture, Dataset, Encoder, Features, Task, Weighting
from mtlbench.errors import MtlbenchError, did_you_mean
from mtlbench.gradients import GradientEngine, Precision
from mtlbench.heads import HeadChoice, build_head, he_initialise
from mtlbench.parallel import ALONE, Ranks
from mtlbench.registry import Choice, Registry
from mtlbench.spec import format_by_task
from mtlbench.training.compiled import compile_parts
from mtlbench.training.seeds import derive, stream


class MultiTaskModel(nn.Module):
    """Architecture and heads; ``forward`` gives the outputs of the tasks by name."""

    def __init__(self, architecture: Architecture, heads: nn.ModuleDict) -> None:
        super().__init__()
        self.architecture = architecture
        self.heads = heads

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return the outputs of ``tasks`` (None: of all) for the input ``x`` ``[B, C, H, W]``."""
        return self.run(x, tasks)[1]

    def run(self, x: Tensor, tasks: Sequence[str] | None = None) -> tuple[Features, dict[str, Tensor]]:
        """Return what the heads read, and what they give; see `forward`."""
        features = self.architecture(x, tasks)
        size = tuple(x.shape[2:])
        outputs = {task: self.heads[task](pyramid, size) for task, pyramid in features.pyramids.items()}
        return features, outputs


@dataclass(frozen=True)
class Run:
    """One architecture, weighting, encoder, dataset, protocol and seed: what is trained and tested once.

    encoders: one for each of `tasks`, often the same for all. heads: those that were asked for, by task; the
    others follow from output and encoder. probe: on every so-manieth step the task gradients are compared,
    also for a method that has no use for them; 0 for never. It changes what is logged and no result, so it is
    no part of what the run is. sync_bn: batch norm over the samples of all processes; what it changes is in
    the protocol (``shards``). tuning: the search that chose its settings, if there was one. workers: threads
    that read ahead. auxiliary: what the dataset was given besides, in this order. validate_every:
    after every so-manieth step within an epoch the validation split is scored, too; like a probe it changes
    what is logged and no result.
    """

    architecture: Choice
    weighting: Choice
    encoders: Mapping[str, Choice]
    heads: Mapping[str, HeadChoice]
    dataset: Choice
    tasks: tuple[str, ...]
    grad: Literal["parameters", "features"]
    scale: Literal["published", "sum", "mean"]
    seed: int
    protocol: dict[str, Any]
    registry: Registry = field(repr=False, compare=False)
    probe: int = field(default=0, compare=False)
    sync_bn: bool = field(default=False, compare=False)
    tuning: Tuning | None = None
    workers: int = field(default=1, compare=False)
    auxiliary: tuple[Choice, ...] = ()
    validate_every: int = field(default=0, compare=False)

    @property
    def settings(self) -> dict[str, Any]:
        """The protocol as it is trained: with the learning rate that was tuned, where one was."""
        tuned = None if self.tuning is None else self.tuning.lr
        return self.protocol if tuned is None else self.protocol | {"lr": tuned}

    @property
    def name(self) -> str:
        """``architecture+weighting``, the folder of the record."""
        return f"{self.architecture.plugin.name}+{self.weighting.plugin.name}"

    @property
    def encoder(self) -> Choice | None:
        """The one encoder of all tasks; None where tasks have different ones."""
        first, *others = self.encoders.values()
        return first if all(other == first for other in others) else None

    @property
    def encoder_label(self) -> str:
        """What people read: one spec, or ``task=spec,task=spec``."""
        return format_by_task(self.encoders) if self.encoder is None else str(self.encoder)

    def only(self, task: str) -> Run:
        """Return the run with this task alone, in its encoder and with its head."""
        heads = {name: head for name, head in self.heads.items() if name == task}
        return replace(self, tasks=(task,), encoders={task: self.encoders[task]}, heads=heads)

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
        choice = run.encoder if task is None else run.encoders[task]
        if choice is None:
            raise MtlbenchError(
                f"architecture '{run.architecture}' shares one encoder between tasks, and --encoder names"
                f" several ({run.encoder_label}): name one, or choose an architecture that gives each task"
                " its own, such as stl"
            )
        with stream(run.seed, "encoder", copies):
            built: Encoder = choice.build(in_channels=dataset.input_shape[0])
            if he and not built.initialised:
                he_initialise(built)
        copies += 1
        return built

    with stream(run.seed, "architecture"):
        architecture: Architecture = run.architecture.build(encoder=encoder, tasks=tasks)
    heads = nn.ModuleDict()
    for task in tasks:
        asked, shape = run.heads.get(task.name), architecture.shape(task.name)
        with stream(run.seed, "head", task.name):
            try:
                head = build_head(task.output, shape, None if asked is None else str(asked))
            except MtlbenchError as error:
                where = run.encoders[task.name]
                raise MtlbenchError(f"task '{task.name}', encoder '{where}': {error}") from None
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
    if run.protocol["compile"]:
        compile_parts([architecture, *heads.values()])
    return MultiTaskModel(architecture, heads), weighting


def build_engine(
    run: Run, dataset: Dataset, model: MultiTaskModel, weighting: Weighting, ranks: Ranks = ALONE
) -> GradientEngine:
    """Return the engine that computes the updates of ``run``; refuses what does not fit together."""
    return GradientEngine(
        model.architecture,
        {name: model.heads[name] for name in run.tasks},
        choose_tasks(dataset, run.tasks),
        weighting,
        run.grad,
        dataset.per_task,
        run.scale,
        ranks,
        Precision(run.protocol["precision"]),
    )
