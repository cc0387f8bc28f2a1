"""What a dataset promises."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import torch
from torch import Tensor

from mtlbench.contracts import SPLITS, Batch, Dataset, Likelihood, Split, Task, Vector, labelled
from mtlbench.tasks import check_moves


def check_dataset(dataset: Dataset) -> None:
    """Assert that a dataset keeps the contract; it reads all of it twice, for the fingerprint.

    Splits are not empty, give the same samples whenever asked, by several threads at once too, and in the
    order asked for, with inputs of the promised shape and a target for each task (in per-task mode: for the
    split's own task). Each task's loss and metrics take what its head will give: the loss is finite,
    differentiable, additive over a divided batch and 0 without labels; every metric gives a finite scalar.
    """
    name = type(dataset).__name__
    names = [task.name for task in dataset.tasks]
    assert dataset.title, f"{name}: it has no title"
    assert names, f"{name}: it has no tasks"
    assert len(set(names)) == len(names), f"{name}: two tasks have one name: {names}"
    for task in dataset.tasks:
        check_moves(task, f"{name}: the task {task.name}")
        assert task.metrics, f"{name}: the task {task.name} has no metric"
    for split_name in SPLITS:
        split, where = dataset.split(split_name), f"{name}, {split_name} split"
        assert isinstance(split, Mapping) == dataset.per_task, (
            f"{where}: it is {'' if isinstance(split, Mapping) else 'not '}divided by task, the train split "
            f"is {'' if dataset.per_task else 'not '}"
        )
        if isinstance(split, Mapping):
            assert sorted(split) == sorted(names), (
                f"{where}: parts {sorted(split)} for the tasks {sorted(names)}"
            )
            for task in dataset.tasks:
                _check_split(f"{where}, {task.name}", dataset, split[task.name], (task,))
        else:
            _check_split(where, dataset, split, dataset.tasks)
    fingerprint = dataset.fingerprint()
    assert re.fullmatch("[0-9a-f]{16}", fingerprint), f"{name}: {fingerprint!r} is no 16 hexadecimal digits"
    assert fingerprint == dataset.fingerprint(), f"{name}: two fingerprints of the same data differ"


def _check_split(where: str, dataset: Dataset, split: Split, tasks: tuple[Task, ...]) -> None:
    assert len(split) > 0, f"{where}: it is empty"
    indices = torch.arange(min(len(split), 4))
    batch, again, reverse = split.fetch(indices), split.fetch(indices), split.fetch(indices.flip(0))
    assert _equal(batch, again), f"{where}: the same samples differ when fetched again"
    flipped = Batch(batch.inputs.flip(0), {key: value.flip(0) for key, value in batch.targets.items()})
    assert _equal(flipped, reverse), f"{where}: fetch does not keep the order of the indices"
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(split.fetch, [indices] * 16))
    assert all(_equal(batch, other) for other in found), (
        f"{where}: fetch gives other samples to several threads"
    )
    assert batch.inputs.dtype in (torch.uint8, torch.float32), (
        f"{where}: inputs must be uint8 or float32, got {batch.inputs.dtype}"
    )
    expected = (len(indices), *dataset.input_shape)
    assert tuple(batch.inputs.shape) == expected, (
        f"{where}: inputs must be {expected} as input_shape says, got {tuple(batch.inputs.shape)}"
    )
    assert batch.inputs.isfinite().all(), f"{where}: inputs are not finite"
    assert sorted(batch.targets) == sorted(task.name for task in tasks), (
        f"{where}: targets {sorted(batch.targets)} for the tasks {sorted(task.name for task in tasks)}"
    )
    for task in tasks:
        _check_task(f"{where}, task {task.name}", dataset, task, batch.targets[task.name])


def _check_task(where: str, dataset: Dataset, task: Task, target: Tensor) -> None:
    count = len(target)
    assert target.dtype in (torch.int64, torch.float32), (
        f"{where}: targets must be int64 or float32, got {target.dtype}"
    )
    if not dataset.partial:
        assert labelled(target).reshape(count, -1).any(1).all(), (
            f"{where}: a sample has no label, but the dataset's `partial` is False"
        )
    assert task.loss.likelihood in get_args(Likelihood), (
        f"{where}: the loss's likelihood is {task.loss.likelihood!r}, not one of {get_args(Likelihood)}"
    )
    generator = torch.Generator().manual_seed(0)
    if isinstance(task.output, Vector):
        shape: tuple[int, ...] = (count, task.output.size)
    else:
        shape = (count, task.output.channels, *dataset.input_shape[-2:])
    output = torch.randn(shape, generator=generator).requires_grad_()
    loss = task.loss(output, target)
    assert loss.ndim == 0, f"{where}: the loss must be a scalar, got {tuple(loss.shape)}"
    assert loss.isfinite(), f"{where}: the loss of a random output is {loss.item()}"
    (gradient,) = torch.autograd.grad(loss, output)
    assert gradient.isfinite().all(), f"{where}: the gradient of the loss is not finite"
    whole = torch.stack([part.detach().double() for part in task.loss.terms(output, target)])
    parts = sum(
        torch.stack(
            [part.detach().double() for part in task.loss.terms(output[i : i + 1], target[i : i + 1])]
        )
        for i in range(count)
    )
    assert torch.allclose(whole, torch.as_tensor(parts), rtol=1e-4, atol=1e-6), (
        f"{where}: the loss's (sum, count) is {whole.tolist()} for a batch, {parts} for its samples together"
    )
    empty = task.loss(output, torch.full_like(target, -1 if target.dtype == torch.int64 else torch.nan))
    (gradient,) = torch.autograd.grad(empty, output)
    assert empty == 0, f"{where}: without any label the loss must be 0, got {empty.item()}"
    assert not gradient.any(), f"{where}: without any label the gradient of the loss is not zero"
    for metric in task.metrics:
        accumulator = metric.make()
        accumulator.update(output.detach(), target)
        score = torch.as_tensor(accumulator.compute())
        assert score.ndim == 0, f"{where}: metric {metric.name} must be a scalar, got {tuple(score.shape)}"
        assert score.isfinite(), f"{where}: metric {metric.name} of a random output is {score.item()}"


def _equal(first: Batch, second: Batch) -> bool:
    """Return whether two batches are the same, a missing label being equal to a missing label."""
    if first.targets.keys() != second.targets.keys() or not torch.equal(first.inputs, second.inputs):
        return False
    return all(
        torch.equal(target.nan_to_num(nan=torch.inf), second.targets[key].nan_to_num(nan=torch.inf))
        for key, target in first.targets.items()
    )
