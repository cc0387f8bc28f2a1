"""What one look at a split gives: gates of all samples, and everything of a few chosen ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtlbench.contracts import Batch, Pyramid, Reading, Split, SplitName, Task
from mtlbench.errors import MtlbenchError
from mtlbench.inspection.subject import Subject

DEFAULT_IMAGES = 4


@dataclass
class Shown:
    """Chosen samples of one split: of all tasks (joint mode), or of one task with inputs of its own.

    indices: which samples. inputs: ``[N, C, H, W]`` in 0..1. outputs, targets: by task ``[N, ...]``.
    pyramids: by task; tasks that share features share the object. readings: as the architecture gave them.
    """

    tasks: tuple[str, ...]
    indices: tuple[int, ...]
    inputs: Tensor
    outputs: dict[str, Tensor]
    targets: Mapping[str, Tensor]
    pyramids: Mapping[str, Pyramid]
    readings: tuple[Reading, ...]


@dataclass
class Seen:
    """What `look` gives. tasks: by name. gates: readings of kind "gate" with values of the whole split."""

    split: SplitName
    tasks: Mapping[str, Task]
    shown: list[Shown] = field(default_factory=list)
    gates: list[Reading] = field(default_factory=list)


@torch.no_grad()
def look(subject: Subject, split: SplitName, images: Sequence[int] | None) -> Seen:
    """Run the model over a split. images: which samples to show; None: a few, evenly spaced."""
    found = subject.dataset.split(split)
    seen = Seen(split, {task.name: task for task in subject.tasks})
    every = tuple(seen.tasks)
    parts = [((name,), found[name]) for name in every] if isinstance(found, Mapping) else [(every, found)]
    for tasks, part in parts:
        indices = chosen(images, len(part), split, DEFAULT_IMAGES)
        seen.shown.append(_show(subject, part, tasks, indices))
        if any(reading.kind == "gate" for reading in seen.shown[-1].readings):
            seen.gates += _gates(subject, part, tasks)
    return seen


def chosen(images: Sequence[int] | None, size: int, split: str, count: int) -> tuple[int, ...]:
    """Return the samples to show: ``images``, or ``count`` of them evenly spaced. Raises `MtlbenchError`."""
    if images is None:
        count = min(count, size)
        return tuple(i * size // count for i in range(count))
    for index in images:
        if index >= size:
            raise MtlbenchError(
                f"--images: the {split} split has {size} samples, numbered from 0; there is no {index}"
            )
    return tuple(images)


def _show(subject: Subject, part: Split, tasks: tuple[str, ...], indices: tuple[int, ...]) -> Shown:
    batch = _fetch(part, torch.tensor(indices))
    features, outputs = subject.model.run(batch.inputs, tasks)
    return Shown(tasks, indices, batch.inputs, outputs, batch.targets, features.pyramids, features.readings)


def _gates(subject: Subject, part: Split, tasks: Sequence[str]) -> list[Reading]:
    """Return the gate readings of all samples of ``part``, each joined over the batches."""
    found: dict[tuple[str, str | None], list[Reading]] = {}
    size = 4 * int(subject.record.values["protocol"]["batch_size"])
    for indices in torch.split(torch.arange(len(part)), size):
        for reading in subject.model.architecture(_fetch(part, indices).inputs, tasks).readings:
            if reading.kind == "gate":
                found.setdefault((reading.place, reading.task), []).append(reading)
    return [
        Reading("gate", place, torch.cat([r.values for r in readings]), task, readings[0].names)
        for (place, task), readings in found.items()
    ]


def _fetch(part: Split, indices: Tensor) -> Batch:
    # On the CPU, so that pictures do not depend on the machine's other devices.
    return part.fetch(indices).to(torch.device("cpu"))
