"""Any image dataset with tasks whose targets are derived from the image while it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from mtlbench.contracts import Auxiliary, Batch, Change, Dataset, Split, SplitName
from mtlbench.errors import MtlbenchError


def with_auxiliary(dataset: Dataset, auxiliaries: Sequence[Auxiliary], scored: bool = False) -> Dataset:
    """Return the dataset with a task more for each of the auxiliaries, after its own and in their order.

    Targets come from the clean image. Inputs are altered by one auxiliary after the other, in their order;
    the result is the input of all tasks, in all splits. What is random in that hangs on split and place of
    the sample alone: not on seed, epoch, batch or process. Without auxiliaries it is the dataset itself.

    scored: whether the new tasks count like others, in selection and Δ-MTL. Raises `MtlbenchError` where
    inputs are no images, where tasks have inputs of their own, or where two tasks would have one name.
    """
    return _WithAuxiliary(dataset, auxiliaries, scored) if auxiliaries else dataset


class _WithAuxiliary(Dataset):
    def __init__(self, dataset: Dataset, auxiliaries: Sequence[Auxiliary], scored: bool) -> None:
        if len(dataset.input_shape) != 3:
            raise MtlbenchError(
                f"{dataset.title} has no images, which auxiliary tasks (--aux) are derived from"
            )
        if dataset.per_task:
            raise MtlbenchError(
                f"{dataset.title}: each task has inputs of its own, and auxiliary tasks (--aux) need one"
                " input that all tasks share"
            )
        tasks = [auxiliary.task(dataset.input_shape) for auxiliary in auxiliaries]
        self.auxiliaries = {task.name: auxiliary for task, auxiliary in zip(tasks, auxiliaries, strict=True)}
        taken = [task.name for task in dataset.tasks]
        for task in tasks:
            if task.name in taken:
                raise MtlbenchError(f"{dataset.title} with --aux would have two tasks '{task.name}'")
            taken.append(task.name)
        self.dataset = dataset
        self.title = f"{dataset.title} with {', '.join(self.auxiliaries)}"
        own = (replace(task, auxiliary=not scored, moves="derived") for task in tasks)
        self.tasks = (*dataset.tasks, *own)
        self.input_shape = dataset.input_shape
        self.partial, self.notice = dataset.partial, dataset.notice

    def split(self, name: SplitName) -> Split:
        found = self.dataset.split(name)
        assert not isinstance(found, Mapping)
        return _Split(found, name, self.auxiliaries, self.dataset.title)


class _Split(Split):
    def __init__(self, split: Split, name: str, auxiliaries: Mapping[str, Auxiliary], title: str) -> None:
        self.samples, self.name, self.auxiliaries, self.title = split, name, auxiliaries, title
        self.streamed = True

    def __len__(self) -> int:
        return len(self.samples)

    def changed(self, change: Change) -> Split:
        return _Split(self.samples.changed(change), self.name, self.auxiliaries, self.title)

    def fetch(self, indices: torch.Tensor) -> Batch:
        batch = self.samples.fetch(indices)
        clean = batch.to(torch.device("cpu")).inputs
        if batch.inputs.is_floating_point() and len(clean) and not (0 <= clean.min() <= clean.max() <= 1):
            raise MtlbenchError(
                f"{self.title}: auxiliary tasks (--aux) need images in 0..1, and the {self.name} split has"
                f" {float(clean.min()):g}..{float(clean.max()):g}"
            )
        targets = {task: auxiliary.target(clean) for task, auxiliary in self.auxiliaries.items()}
        inputs = batch.inputs
        for task, auxiliary in self.auxiliaries.items():
            if auxiliary.alters:
                inputs = clean if inputs is batch.inputs else inputs
                inputs = auxiliary.alter(inputs, [self._generator(task, i) for i in indices.tolist()])
        return Batch(inputs, {**batch.targets, **targets})

    def _generator(self, task: str, index: int) -> torch.Generator:
        digest = hashlib.sha256(f"{task}/{self.name}/{index}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
