"""Losses and metrics of a whole split: accumulated first, scored once."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from mtlbench.contracts import Split, Task
from mtlbench.training.model import MultiTaskModel


@dataclass(frozen=True)
class Scores:
    """What a split says of one task: the mean loss, and each metric's value; None where it has no label."""

    loss: float | None
    metrics: dict[str, float | None]


@torch.no_grad()
def evaluate(
    model: MultiTaskModel,
    tasks: Sequence[Task],
    split: Split | Mapping[str, Split],
    batch_size: int,
    device: torch.device,
) -> dict[str, Scores]:
    """Return the scores of all tasks on a split. The model is in eval mode during the call only."""
    model.eval()
    meters = {task.name: _Meters(task).to(device) for task in tasks}
    totals = {task.name: torch.zeros(2, dtype=torch.float64) for task in tasks}
    parts = split.items() if isinstance(split, Mapping) else [(None, split)]
    for only, samples in parts:
        group = [task for task in tasks if only is None or task.name == only]
        if not group:
            continue
        for indices in torch.split(torch.arange(len(samples)), 4 * batch_size):
            batch = samples.fetch(indices).to(device)
            outputs = model(batch.inputs, [task.name for task in group])
            for task in group:
                output, target = outputs[task.name], batch.targets[task.name]
                total, count = task.loss.terms(output, target)
                totals[task.name] += torch.stack([total.cpu().double(), count.cpu().double()])
                meters[task.name].update(output, target)
    model.train()
    return {
        task.name: Scores(
            float(totals[task.name][0] / totals[task.name][1]) if totals[task.name][1] else None,
            meters[task.name].scores(),
        )
        for task in tasks
    }


class _Meters(MetricCollection):
    """The accumulators of a task; those that accumulate the same share one state."""

    def __init__(self, task: Task) -> None:
        # torchmetrics' own search would merge metrics whose states happen to be equal after the first batch;
        # and it allows no dot in a name.
        self.names = {f"metric{i}": metric.name for i, metric in enumerate(task.metrics)}
        groups: dict[Hashable, list[str]] = {}
        for key, metric in zip(self.names, task.metrics, strict=True):
            groups.setdefault((key,) if metric.state is None else metric.state, []).append(key)
        super().__init__(
            {key: metric.make() for key, metric in zip(self.names, task.metrics, strict=True)},
            compute_groups=list(groups.values()),
        )

    def scores(self) -> dict[str, float | None]:
        """Return each metric's value by its name; None where it is not finite."""
        return {self.names[key]: _number(value) for key, value in self.compute().items()}


def _number(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def selection_score(scores: Mapping[str, Scores]) -> float:
    """Return the logarithm of the geometric mean of the tasks' losses; lower is better.

    Losses are cut off below 1e-12; a task without a label is left out. NaN where a loss is not finite.
    """
    losses = [score.loss for score in scores.values() if score.loss is not None]
    if not all(map(math.isfinite, losses)):
        return math.nan
    return math.fsum(math.log(max(loss, 1e-12)) for loss in losses) / len(losses)


def unlabelled(scores: Mapping[str, Scores]) -> list[str]:
    """Return the names of the tasks that have no label in the split."""
    return [name for name, score in scores.items() if score.loss is None]
