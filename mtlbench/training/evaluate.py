"""Losses and metrics of a whole split: accumulated first, scored once."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from mtlbench.contracts import Split, Task
from mtlbench.gradients import Precision, at_least_float32
from mtlbench.parallel import ALONE, Ranks
from mtlbench.training.ahead import ahead
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
    ranks: Ranks = ALONE,
    precision: Precision | None = None,
    workers: int = 0,
    mark: Callable[[str], None] = lambda phase: None,
) -> dict[str, Scores]:
    """Return the scores of all tasks on a split. The model is in eval mode during the call only.

    Each of the ranks takes a share of the samples, every sample once; the scores are of all of them.
    workers: threads that read ahead where it takes time. mark: is told what begins, for a profile.
    """
    precision = precision or Precision()
    model.eval()
    meters = {task.name: Meters(task).to(device) for task in tasks}
    totals = {task.name: torch.zeros(2, dtype=torch.float64) for task in tasks}
    parts = split.items() if isinstance(split, Mapping) else [(None, split)]
    for only, samples in parts:
        group = [task for task in tasks if only is None or task.name == only]
        if not group:
            continue
        share = torch.tensor_split(torch.arange(len(samples)), ranks.size)[ranks.rank]
        pieces = torch.split(share, 4 * batch_size) if len(share) else ()
        mark("evaluation data")
        for fetched in ahead(samples.fetch, pieces, workers if samples.streamed else 0):
            mark("evaluation")
            batch = fetched.to(device)
            with precision.autocast(device):
                outputs = model(batch.inputs, [task.name for task in group])
            for task in group:
                output, target = at_least_float32(outputs[task.name]), batch.targets[task.name]
                total, count = task.loss.terms(output, target)
                totals[task.name] += torch.stack([total.cpu().double(), count.cpu().double()])
                meters[task.name].update(output, target)
            mark("evaluation data")
        mark("evaluation")
    model.train()
    ranks.sum(list(totals.values()))
    scores = {task.name: meters[task.name].gathered(ranks) for task in tasks}
    return {
        task.name: Scores(
            float(totals[task.name][0] / totals[task.name][1]) if totals[task.name][1] else None,
            scores[task.name],
        )
        for task in tasks
    }


class Meters(MetricCollection):
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

    def gathered(self, ranks: Ranks) -> dict[str, float | None]:
        """Return what `scores` gives for what all ranks accumulated, in their order."""
        if ranks.size == 1:
            return self.scores()
        # torchmetrics' own way stalls where a rank has seen nothing, so states are joined here, and computed
        # where at least one sample was seen.
        leaders = [getattr(self, group[0]) for group in self.compute_groups.values()]
        states = ranks.gather([_to_cpu(metric.metric_state) for metric in leaders])
        for number, metric in enumerate(leaders):
            for name, reduce in metric._reductions.items():
                found = [state[number][name] for state in states]
                if isinstance(found[0], list):
                    joined: Any = [value.to(metric.device) for values in found for value in values]
                else:
                    joined = torch.stack(found).to(metric.device)
                    joined = joined if reduce is None else reduce(joined)
                setattr(metric, name, joined)
        for metric in self.values(copy_state=False):
            metric.distributed_available_fn = _never
        return ranks.from_first(self.scores)

    def scores(self) -> dict[str, float | None]:
        """Return each metric's value by its name; None where it is not finite."""
        return {self.names[key]: _number(value) for key, value in self.compute().items()}


def _never() -> bool:
    return False


def _to_cpu(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: [item.cpu() for item in value] if isinstance(value, list) else value.cpu()
        for name, value in state.items()
    }


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
