"""Learning curves of a run beside those of its single-task baselines: does training together learn faster?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from mtlbench.inspection import style
from mtlbench.inspection.picture import Picture, number
from mtlbench.results import Cost, Record, summarise

MOST_TASKS = 12
"""Tasks that are drawn: more would be a wall of panels; the numbers have them all."""


@dataclass(frozen=True)
class Trial:
    """A record and what it cost, where that is known."""

    record: Record
    cost: Cost | None


@dataclass(frozen=True)
class Pair:
    """A run with one seed, and the single-task baselines of that seed, by task."""

    seed: int
    joint: Trial
    alone: Mapping[str, Trial]


def together(pairs: Sequence[Pair]) -> Picture | None:
    """Draw each task's validation scores over training, trained together and alone; None without baselines.

    pairs: the same run with one seed or several.
    """
    record = pairs[0].joint.record
    tasks = [task for task in record.values["spec"]["tasks"] if any(task in pair.alone for pair in pairs)]
    found = {task: _Task(task, record, pairs) for task in tasks}
    found = {task: curves for task, curves in found.items() if curves.seeds}
    if not found:
        return None
    shown = list(found.values())[:MOST_TASKS]
    kinds = ["loss", "metric"] + ["time"] * all(curves.timed for curves in shown)
    rows, columns = style.grid_size(len(shown), 4)
    words = [found_words for curves in shown if (found_words := curves.words())]
    left_out = f" (the first {len(shown)} of {len(found)} tasks)" if len(found) > len(shown) else ""
    title = "\n".join([f"Together and alone over training{left_out}", *(words if len(words) <= 4 else ())])
    figure, axes = style.panels(rows * len(kinds), columns, (4.2, 2.5), title)
    for block, kind in enumerate(kinds):
        panels = list(axes[block * rows : (block + 1) * rows].flat)
        for axis, curves in zip(panels, shown, strict=False):
            curves.draw(axis, kind)
        for axis in panels[len(shown) :]:
            axis.remove()
    style.legend(axes[0, 0])
    numbers = {task: curves.numbers() for task, curves in found.items()}
    caption = _caption(max(len(curves.seeds) for curves in shown), kinds)
    return Picture("together", "Together and alone over training", caption, figure, numbers)


def _caption(seeds: int, kinds: Sequence[str]) -> str:
    text = (
        "Every task's loss, and its first metric, on the validation split while it was trained: in this run,"
        " and in its single-task baseline with the same seed. An epoch is one pass over the same data for"
        " both. Lower losses earlier mean faster learning; that a curve ends lower is another matter. Above:"
        " the loss together over the loss alone, as geometric mean over training, and after how many epochs"
        " either side was at the lowest loss that both reach."
    )
    if seeds > 1:
        text += f" Thin lines are the {seeds} seeds, thick ones their mean (of losses the geometric one)."
    if "time" in kinds:
        text += (
            " The last row has the same losses over measured training time, a run's seconds spread evenly"
            " over its epochs: the baseline trains one task in its time, the run all of them."
        )
    return text


class _Task:
    """The curves of one task with every seed where it was trained both ways.

    epochs: where both were scored, the same for all seeds that are kept. loss, metric: ``[S, E]`` by "joint"
    and "alone". seconds: of one epoch, ``[S]``.
    """

    def __init__(self, task: str, record: Record, pairs: Sequence[Pair]) -> None:
        self.task = task
        metrics = record.values["data"]["metrics"][task]
        self.metric, about = next(iter(metrics.items()))
        self.better = "\N{UPWARDS ARROW}" if about["higher_is_better"] else "\N{DOWNWARDS ARROW}"
        sides = [
            (pair, _points(pair.joint.record, task), _points(pair.alone[task].record, task))
            for pair in pairs
            if task in pair.alone
        ]
        shared = [sorted(joint.keys() & alone.keys()) for _, joint, alone in sides]
        self.epochs: list[float] = max(shared, key=len, default=[])
        kept = [side for side, epochs in zip(sides, shared, strict=True) if epochs == self.epochs and epochs]
        self.seeds = [pair.seed for pair, _, _ in kept]
        self.loss = {
            "joint": _table(kept, 1, self.epochs, "loss"),
            "alone": _table(kept, 2, self.epochs, "loss"),
        }
        self.scores = {
            "joint": _table(kept, 1, self.epochs, self.metric),
            "alone": _table(kept, 2, self.epochs, self.metric),
        }
        costs = [(pair.joint.cost, pair.alone[task].cost) for pair, _, _ in kept]
        self.timed = bool(kept) and len({c.device for both in costs for c in both if c}) == 1
        self.timed = self.timed and all(c is not None for both in costs for c in both)
        self.seconds = {
            "joint": [_epoch_seconds(pair.joint) for pair, _, _ in kept],
            "alone": [_epoch_seconds(pair.alone[task]) for pair, _, _ in kept],
        }

    def ratio(self) -> tuple[float, float | None, float | None] | None:
        """Return the loss together over the loss alone, the geometric mean over epochs and seeds, from, to.

        From and to are the Student-t 95 % interval over seeds, None for one seed. None where a loss is not
        above 0.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(self.loss["joint"] / self.loss["alone"])
        if not np.isfinite(logs).all():
            return None
        found = summarise(logs.mean(1).tolist())
        if found.half_width is None:
            return math.exp(found.mean), None, None
        low, high = (math.exp(found.mean + side * found.half_width) for side in (-1, 1))
        return math.exp(found.mean), low, high

    def reached(self) -> dict[str, float]:
        """Return after how many epochs each side was at the lowest loss that both reach; means over seeds."""
        at = {}
        level = np.maximum(*(self.loss[side].min(1) for side in ("joint", "alone")))
        for side in ("joint", "alone"):
            first = (self.loss[side] <= level[:, None]).argmax(1)
            at[side] = math.fsum(self.epochs[index] for index in first) / len(first)
        return at

    def words(self) -> str:
        """Say which side learned faster; nothing where losses are no positive numbers."""
        ratio = self.ratio()
        if ratio is None or len(self.epochs) < 2:
            return ""
        middle, low, high = ratio
        interval = "" if low is None or high is None else f" (95 %: {low:.2f} to {high:.2f})"
        at = self.reached()
        return (
            f"{self.task}: loss together {middle:.2f} x loss alone{interval};"
            f" lowest of both after {at['joint']:.3g} epochs, alone {at['alone']:.3g}"
        )

    def draw(self, axis: Axes, kind: str) -> None:
        """Draw one panel: "loss", "metric", or "time" (the loss over seconds)."""
        values = self.scores if kind == "metric" else self.loss
        logarithmic = kind != "metric" and all((v > 0).all() for v in values.values())
        marker = "o" if len(self.epochs) == 1 else None
        for side, label, colour in (
            ("alone", "alone", style.PALETTE[1]),
            ("joint", "together", style.PALETTE[0]),
        ):
            across = np.array([self.epochs] * len(self.seeds))
            if kind == "time":
                across = across * np.array(self.seconds[side])[:, None]
            if len(self.seeds) > 1:
                for x, y in zip(across, values[side], strict=True):
                    axis.plot(x, y, color=colour, linewidth=0.7, alpha=0.35)
            middle = np.exp(np.log(values[side]).mean(0)) if logarithmic else values[side].mean(0)
            axis.plot(across.mean(0), middle, color=colour, marker=marker, label=label)
        if logarithmic:
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_title(
            f"{self.task}: {f'{self.metric} {self.better}' if kind == 'metric' else 'validation loss'}"
        )
        axis.set_xlabel("training time, s" if kind == "time" else "epoch")
        axis.set_xlim(left=0)
        axis.grid(False, axis="x")

    def numbers(self) -> dict[str, Any]:
        """Return all that is drawn, and what the words say, as JSON takes it."""
        by_seed = {
            str(seed): {
                side: {
                    "loss": [number(v) for v in self.loss[side][index].tolist()],
                    self.metric: [number(v) for v in self.scores[side][index].tolist()],
                    "seconds_per_epoch": number(self.seconds[side][index]),
                }
                for side in ("joint", "alone")
            }
            for index, seed in enumerate(self.seeds)
        }
        ratio = self.ratio()
        return {
            "epochs": [number(float(epoch)) for epoch in self.epochs],
            "seeds": by_seed,
            "loss_ratio": None if ratio is None else number(ratio[0]),
            "loss_ratio_95": [number(v) for v in ratio[1:] if v is not None] if ratio else [],
            "epochs_to_the_loss_that_both_reach": {
                side: number(value) for side, value in self.reached().items()
            },
        }


def _points(record: Record, task: str) -> dict[float, Mapping[str, float | None]]:
    """Return a task's validation scores by epoch, fractions of an epoch included."""
    found = {}
    for row in record.history:
        for point in (*row.get("within", ()), row):
            scores = point["val"].get(task)
            if scores is not None and scores["loss"] is not None:
                found[float(point["epoch"])] = scores
    return found


def _table(kept: Sequence[Any], side: int, epochs: Sequence[float], name: str) -> NDArray[np.float64]:
    """Return one kind of score ``[S, E]``; NaN where there is none."""
    values = [[entry[side][epoch].get(name) for epoch in epochs] for entry in kept]
    return np.array(values, dtype=np.float64).reshape(len(kept), len(epochs))


def _epoch_seconds(trial: Trial) -> float:
    epochs = len(trial.record.history)
    return math.nan if trial.cost is None or not epochs else trial.cost.seconds / epochs
