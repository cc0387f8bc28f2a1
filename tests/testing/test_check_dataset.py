"""The kit finds what a dataset does wrong, and says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from mtlbench.contracts import Batch, Dataset, Loss, Metric, Split, SplitName, Task
from mtlbench.losses import MSE
from mtlbench.testing import check_dataset, tiny_tasks


class MeanAbsoluteOutput(MeanMetric):
    """A metric that needs no target."""

    def update(self, output: Tensor, target: Tensor) -> None:
        super().update(output.abs())


METRIC = Metric("size", MeanAbsoluteOutput, higher_is_better=False)
TASKS = tuple(replace(task, metrics=(METRIC,)) for task in tiny_tasks(4))


class Samples(Split):
    """Random images with a label of each kind."""

    def __init__(self, seed: int, count: int, tasks: tuple[Task, ...]) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
        self.targets = {
            "task0": torch.randint(4, (count,), generator=generator),
            "task1": torch.randint(-1, 3, (count, 8, 8), generator=generator),
            "task2": torch.rand(count, 2, generator=generator),
            "task3": torch.rand(count, 1, 8, 8, generator=generator),
        }
        self.targets = {task.name: self.targets[task.name] for task in tasks}

    def __len__(self) -> int:
        return len(self.inputs)

    def fetch(self, indices: Tensor) -> Batch:
        return Batch(self.inputs[indices], {name: target[indices] for name, target in self.targets.items()})


class Joint(Dataset):
    """One input, four targets."""

    def __init__(self) -> None:
        self.title = "random images"
        self.tasks = TASKS
        self.input_shape = (3, 8, 8)
        self.splits = {name: Samples(i, 6, TASKS) for i, name in enumerate(("train", "val", "test"))}

    def split(self, name: SplitName) -> Split:
        return self.splits[name]


class PerTask(Joint):
    """Inputs of its own for each task."""

    def split(self, name: SplitName) -> Mapping[str, Split]:
        return {task.name: Samples(i, 5 + i, (task,)) for i, task in enumerate(TASKS)}


@pytest.mark.parametrize("cls", [Joint, PerTask])
def test_datasets_that_keep_the_contract_pass(cls: type[Dataset]) -> None:
    check_dataset(cls())


class Backwards(Samples):
    """Sorts what it is asked for."""

    def fetch(self, indices: Tensor) -> Batch:
        return super().fetch(indices.sort().values)


class Augmenting(Samples):
    """Gives another input every time."""

    def fetch(self, indices: Tensor) -> Batch:
        batch = super().fetch(indices)
        return Batch(torch.rand(batch.inputs.shape), batch.targets)


class MeanOfMeans(MSE):
    """Counts batches instead of elements."""

    def terms(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        total, count = super().terms(output, target)
        return total / count.clamp(min=1), count.clamp(max=1)


class Unmasked(Loss):
    """Does not look for missing labels."""

    likelihood = "gaussian"

    def terms(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return (output - target).square().sum(), torch.tensor(output.numel())


def broken(change: str) -> Joint:
    dataset = Joint()
    train = dataset.splits["train"]
    match change:
        case "empty":
            dataset.splits["val"] = Samples(1, 0, TASKS)
        case "order":
            dataset.splits["train"] = Backwards(0, 6, TASKS)
        case "random":
            dataset.splits["train"] = Augmenting(0, 6, TASKS)
        case "shape":
            dataset.input_shape = (3, 8, 9)
        case "dtype":
            train.targets["task2"] = train.targets["task2"].double()
        case "no target":
            del train.targets["task3"]
        case "missing":
            train.targets["task0"][1] = -1
        case "not additive":
            dataset.tasks = (*TASKS[:2], replace(TASKS[2], loss=MeanOfMeans()), TASKS[3])
        case "unmasked":
            dataset.tasks = (*TASKS[:2], replace(TASKS[2], loss=Unmasked()), TASKS[3])
        case "no metric":
            dataset.tasks = (*TASKS[:3], replace(TASKS[3], metrics=()))
        case "same name":
            dataset.tasks = (*TASKS, TASKS[0])
    return dataset


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("empty", "Joint, val split: it is empty"),
        ("order", "Joint, train split: fetch does not keep the order"),
        ("random", "the same samples differ when fetched again"),
        ("shape", r"inputs must be \(4, 3, 8, 9\) as input_shape says, got \(4, 3, 8, 8\)"),
        ("dtype", "task task2: targets must be int64 or float32, got torch.float64"),
        ("no target", "targets .* for the tasks"),
        ("missing", "task task0: a sample has no label, but the dataset's `partial` is False"),
        ("not additive", "task task2: the loss's \\(sum, count\\) is"),
        ("unmasked", "task task2: without any label the loss must be 0, got nan"),
        ("no metric", "the task task3 has no metric"),
        ("same name", "two tasks have one name"),
    ],
)
def test_what_a_dataset_breaks_is_named(change: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_dataset(broken(change))


def test_a_dataset_may_lack_labels_where_it_says_so() -> None:
    dataset = broken("missing")
    dataset.partial = True
    check_dataset(dataset)
