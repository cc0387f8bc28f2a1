"""All of a dataset, read once before training: what is wrong is told then, in one line."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlbench.contracts import Batch, Dataset, Task, Vector, labelled
from mtlbench.errors import MtlbenchError
from mtlbench.losses import BinaryCrossEntropy, CrossEntropy


def verify(dataset: Dataset) -> tuple[str, list[str]]:
    """Return the fingerprint of a dataset and what is odd about it, a line each, having read all of it.

    Odd is a class that no training sample has. Wrong, and `MtlbenchError` with one line, is an empty split;
    inputs of another shape than promised, or not finite; a target that the task's loss cannot take; a label
    outside of its classes; an infinite target; a missing label where the dataset says that there are none.
    """
    for name, count in dataset.counts().items():
        if not count:
            raise MtlbenchError(f"{dataset.title}: the split '{name}' is empty")
    checker = _Checker(dataset)
    return dataset.fingerprint(checker.look), checker.oddities()


class _Checker:
    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.seen: dict[str, int] = {}
        self.classes = {
            task.name: torch.zeros(_classes(task), dtype=torch.int64)
            for task in dataset.tasks
            if isinstance(task.loss, CrossEntropy | BinaryCrossEntropy)
        }

    def look(self, where: str, batch: Batch) -> None:
        """Check one batch of the split ``where``; batches come in order."""
        first = self.seen.get(where, 0)
        self.seen[where] = first + len(batch.inputs)
        shape = tuple(batch.inputs.shape[1:])
        if shape != tuple(self.dataset.input_shape):
            self._refuse(where, f"inputs have the shape {shape}, not {tuple(self.dataset.input_shape)}")
        if batch.inputs.is_floating_point():
            self._every(where, first, batch.inputs.isfinite(), "inputs that are not finite")
        _, _, only = where.partition("/")
        for task in self.dataset.tasks:
            if only in ("", task.name):
                self._target(where, first, task, batch)

    def _target(self, where: str, first: int, task: Task, batch: Batch) -> None:
        start, where = not first, f"{where} split, task '{task.name}'"
        if task.name not in batch.targets:
            self._refuse(where, "there is no target")
        target = batch.targets[task.name]
        if start:
            try:
                task.loss.terms(_output(task, self.dataset.input_shape), target[:1].clamp(max=0))
            except (MtlbenchError, RuntimeError, ValueError, IndexError) as error:
                self._refuse(where, str(error).splitlines()[0])
        known = labelled(target)
        if target.is_floating_point():
            self._every(where, first, ~target.isinf(), "an infinite target")
        elif task.name in self.classes:
            classes = len(self.classes[task.name])
            self._every(
                where, first, (target >= -1) & (target < classes), f"a label outside of 0..{classes - 1}"
            )
            if where.startswith("train"):
                self.classes[task.name] += torch.bincount(target[known], minlength=classes)
        if not self.dataset.partial:
            whole = known if isinstance(task.output, Vector) else known.flatten(1).any(1)
            self._every(where, first, whole, "no label (NaN or -1), and the dataset declares none missing")

    def _every(self, where: str, first: int, holds: Tensor, otherwise: str) -> None:
        """Refuse the first sample for which something does not hold."""
        good = holds.reshape(len(holds), -1).all(1)
        if not good.all():
            self._refuse(where, f"sample {first + int((~good).nonzero()[0])} has {otherwise}")

    def _refuse(self, where: str, what: str) -> None:
        raise MtlbenchError(f"{self.dataset.title}: {where}: {what}")

    def oddities(self) -> list[str]:
        """Return a line for each task some of whose classes no training sample has."""
        lines = []
        for task, counts in self.classes.items():
            absent = (counts == 0).nonzero().flatten().tolist()
            if counts.any() and absent:
                which = ", ".join(map(str, absent[:10])) + (" …" if len(absent) > 10 else "")
                lines.append(f"{self.dataset.title}: no training sample of '{task}' has class {which}")
        return lines


def _classes(task: Task) -> int:
    """Return how many labels a task with integer targets knows; one logit tells two apart."""
    size = task.output.size if isinstance(task.output, Vector) else task.output.channels
    return max(size, 2)


def _output(task: Task, inputs: tuple[int, ...]) -> Tensor:
    """Return an output as the task's head would give it for one sample."""
    shape = (task.output.size,) if isinstance(task.output, Vector) else (task.output.channels, *inputs[-2:])
    return torch.zeros(1, *shape)
