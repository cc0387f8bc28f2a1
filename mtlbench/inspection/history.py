"""What a record's history shows: who pulls against whom, losses and weights, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from mtlbench.config import BASELINE
from mtlbench.inspection import style
from mtlbench.inspection.picture import Picture, number
from mtlbench.results import Comparison, Record

MOST_PAIRS = len(style.PALETTE)
"""Pairs of tasks that get a colour; of more, those that are in conflict most often."""


WEAK = 0.2
"""A cosine that is drawn in full colour where no other is stronger: so weak ones look weak."""


SLIGHT = 0.05
"""A mean cosine that is not worth the words "pull against each other"."""


_CHANCE = "Nothing is shared here either: gains show what chance does."


class Pairs:
    """The task gradients of a run, pair by pair: means over the epochs in which they were logged.

    epochs: their numbers. cosine, conflict: by two tasks, one value an epoch, NaN where they never met.
    norm: by task, one value an epoch.
    """

    def __init__(self, record: Record) -> None:
        rows = [row for row in record.history if row.get("gradients")]
        self.tasks: list[str] = record.values["spec"]["tasks"]
        self.epochs = [row["epoch"] for row in rows]
        found = [row["gradients"] for row in rows]
        pairs = list(combinations(self.tasks, 2))
        self.cosine = {(a, b): _floats(g["cosine"][a][b] for g in found) for a, b in pairs}
        self.conflict = {(a, b): _floats(g["conflict"][a][b] for g in found) for a, b in pairs}
        self.norm = {task: _floats(g["norm"][task] for g in found) for task in self.tasks}

    def mean(self, values: Mapping[tuple[str, str], NDArray[Any]], a: str, b: str) -> float:
        """Return a pair's mean over the epochs; NaN where there is none."""
        return _mean(values[(a, b) if (a, b) in values else (b, a)])

    def known(self) -> list[tuple[str, str]]:
        """Return the pairs that met, the one that is in conflict most often first."""
        pairs = [pair for pair in self.cosine if not math.isnan(_mean(self.cosine[pair]))]
        return sorted(pairs, key=lambda pair: (-_mean(self.conflict[pair]), _mean(self.cosine[pair])))


def verdict(record: Record, comparison: Comparison) -> Picture | None:
    """Draw who pulls against whom, beside what each task gained over being trained alone.

    None where neither is known: no gradients were logged, and no baseline is in the store.
    """
    pairs = Pairs(record)
    gains = _gains(comparison)
    known = pairs.known()
    if not known and not gains:
        return None
    apart = record.values["spec"]["architecture"]["name"] == BASELINE[0]
    words = [*_conflict_words(pairs, known), *([_CHANCE] if apart else _gain_words(gains))]
    tasks = pairs.tasks
    count = len(tasks)
    side = max(1.05 * count, 2.6)
    left = side + 1.6 if known else 0.0
    figure, axes = style.panels(
        1,
        bool(known) + bool(gains),
        (
            (left + (3.6 if gains else 0)) / (bool(known) + bool(gains)),
            max(side, 0.5 * len(gains) + 1.2) + 0.7,
        ),
        "\n".join(words),
        gridspec_kw={"width_ratios": [left, 3.6] if known and gains else [1]},
    )
    if known:
        _matrix(axes[0, 0], pairs)
    if gains:
        _bars(axes[0, -1], gains)
    matrix = {
        a: {
            b: {
                "cosine": number(pairs.mean(pairs.cosine, a, b)),
                "conflict": number(pairs.mean(pairs.conflict, a, b)),
            }
            for b in tasks
            if b != a
        }
        for a in tasks
    }
    return Picture(
        "summary",
        "Which task hurts which",
        "Left: how the gradients of two tasks stood to each other while they were trained, as mean cosine"
        " and as the share of steps in which it was negative: then a step for one task, taken alone, would"
        " have made the other worse. On the diagonal how long a task's gradient is, compared with the"
        " longest: a long one pulls the shared weights its way. Right: what came of it, the mean gain of"
        " each task's test metrics over the same task trained alone. Gradients in conflict explain a loss,"
        " they do not prove it; and a gain of one seed may be chance.",
        figure,
        {
            "words": words,
            "pairs": matrix if known else None,
            "norm": {task: number(_mean(pairs.norm[task])) for task in tasks} if known else None,
            "gain_percent": {task: number(gain) for task, gain in gains.items()},
            "delta_mtl": None if comparison.delta is None else number(comparison.delta),
        },
    )


def gradients(record: Record) -> Picture | None:
    """Draw cosine, conflict rate and length of the task gradients over training; None where not logged."""
    pairs = Pairs(record)
    known = pairs.known()
    if not known:
        return None
    shown = known[:MOST_PAIRS]
    most = max(len(shown), len(pairs.tasks))
    note = f" ({len(shown)} pairs of {len(known)} that conflict most)" if len(known) > len(shown) else ""
    figure, axes = style.panels(
        1, 3, (3.7, 2.6 + style.legend_height(most)), f"Task gradients over training{note}"
    )
    cosine, conflict, norm = axes[0]
    marker = "o" if len(pairs.epochs) == 1 else None
    for index, (a, b) in enumerate(shown):
        look = {"color": style.colour(index + len(pairs.tasks)), "marker": marker}
        cosine.plot(pairs.epochs, pairs.cosine[a, b], label=f"{a} · {b}", **look)
        conflict.plot(pairs.epochs, 100 * pairs.conflict[a, b], **look)
    cosine.axhline(0, color=style.PALE, linewidth=1)
    low, high = cosine.get_ylim()
    cosine.set_ylim(min(low, -0.1), max(high, 0.1))
    cosine.set_title("cosine (below 0: against each other)")
    style.legend(cosine)
    conflict.set_title("steps in conflict, %")
    conflict.set_ylim(-3, 103)
    for index, task in enumerate(pairs.tasks):
        norm.plot(pairs.epochs, pairs.norm[task], label=task, color=style.colour(index),
                  linestyle=style.line_style(index), marker=marker)  # fmt: skip
    norm.set_title("length of the gradient")
    norm.set_yscale("log")
    norm.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    norm.yaxis.set_major_formatter("{x:g}")
    norm.yaxis.set_minor_locator(NullLocator())
    if len(pairs.tasks) <= 12:
        style.legend(norm)
    for axis in axes[0]:
        _epochs(axis)
    return Picture(
        "gradients",
        "Task gradients over training",
        "For each pair of tasks the cosine of their gradients by the shared weights, and how often it was"
        " negative; for each task how long its gradient was. Means over each epoch's steps.",
        figure,
        {
            "epochs": pairs.epochs,
            "cosine": {f"{a} · {b}": _numbers(pairs.cosine[a, b]) for a, b in known},
            "conflict": {f"{a} · {b}": _numbers(pairs.conflict[a, b]) for a, b in known},
            "norm": {task: _numbers(values) for task, values in pairs.norm.items()},
        },
    )


def curves(record: Record) -> Picture | None:
    """Draw training and validation losses of every task, and the weights, over the epochs; None for none."""
    rows, tasks = record.history, record.values["spec"]["tasks"]
    if not rows:
        return None
    epochs = [row["epoch"] for row in rows]
    selected = record.values["selection"]
    weights = {task: _floats((row["weights"] or {}).get(task) for row in rows) for task in tasks}
    penalties = _floats(row.get("penalty") for row in rows)
    extra = ["weights"] * (len(tasks) > 1 and any(row["weights"] for row in rows))
    extra += ["penalty"] * (not np.isnan(penalties).all())
    height, width = style.grid_size(len(tasks) + len(extra), 4)
    figure, axes = style.panels(
        height, width, (2.9, 2.3 + style.legend_height(max(3, len(tasks)))), "Losses over training"
    )
    spare = list(axes.flat)
    marker = "o" if len(rows) == 1 else None
    losses: dict[str, dict[str, Any]] = {}
    for task in tasks:
        axis = spare.pop(0)
        train, val = (
            _floats(row["train"][task] for row in rows),
            _floats(row["val"][task]["loss"] for row in rows),
        )
        axis.plot(epochs, train, color=style.PALE, marker=marker, label="training")
        axis.plot(epochs, val, color=style.PALETTE[0], marker=marker, label="validation")
        axis.set_title(task)
        losses[task] = {"train": _numbers(train), "val": _numbers(val)}
    for what in extra:
        axis = spare.pop(0)
        axis.set_title("weights" if what == "weights" else "penalty")
        if what == "penalty":
            axis.plot(epochs, penalties, color=style.PALETTE[0], marker=marker)
            continue
        for index, task in enumerate(tasks):
            axis.plot(epochs, weights[task], color=style.colour(index), linestyle=style.line_style(index),
                      marker=marker, label=task)  # fmt: skip
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
        if len(tasks) <= 12:
            style.legend(axis)
    for axis in spare:
        axis.remove()
    for axis in list(axes.flat)[: len(tasks) + len(extra)]:
        if selected:
            axis.axvline(selected["epoch"], color=style.BAD, linewidth=1.2, linestyle=(0, (2, 2)),
                         label="selected" if axis is axes[0, 0] else None)  # fmt: skip
        _epochs(axis)
    style.legend(axes[0, 0])
    return Picture(
        "curves",
        "Losses over training",
        "Mean loss of every task in each epoch, on the training and on the validation split; the dashed line"
        " marks the epoch that was selected on validation and tested. Where the method gives weights, each"
        " task's mean weight.",
        figure,
        {
            "epochs": epochs,
            "selected": selected["epoch"] if selected else None,
            "losses": losses,
            "weights": {task: _numbers(values) for task, values in weights.items()} if extra else None,
            "penalty": _numbers(penalties),
        },
    )


def _matrix(axis: Axes, pairs: Pairs) -> None:
    tasks = pairs.tasks
    norms = np.array([_mean(pairs.norm[task]) for task in tasks])
    longest = np.nanmax(norms)
    values = np.full((len(tasks), len(tasks)), np.nan)
    texts = [["" for _ in tasks] for _ in tasks]
    for i, a in enumerate(tasks):
        for j, b in enumerate(tasks):
            if i == j:
                texts[i][j] = f"length\n{norms[i] / longest:.2f}" if norms[i] > 0 else ""
                continue
            cosine, rate = pairs.mean(pairs.cosine, a, b), pairs.mean(pairs.conflict, a, b)
            values[i, j] = cosine
            texts[i][j] = "never\nmet" if math.isnan(cosine) else f"{_signed(cosine, 2)}\n{rate:.0%}"
    style.heat(axis, values, texts, max(float(np.nanmax(np.abs(values))), WEAK))
    slanted: dict[str, Any] = (
        {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(tasks) > 3 else {}
    )
    axis.set_xticks(range(len(tasks)), tasks, **slanted)
    axis.set_yticks(range(len(tasks)), tasks)
    axis.set_title("cosine of two tasks' gradients,\nand share of steps in conflict")


def _bars(axis: Axes, gains: Mapping[str, float]) -> None:
    values = list(gains.values())
    colours = [style.GOOD if value >= 0 else style.BAD for value in values]
    axis.barh(range(len(gains)), values, color=colours, height=0.55)
    low, high = min(0.0, *values), max(0.0, *values)
    reach = max(high - low, 1e-9)
    for row, value in enumerate(values):
        side, shift = ("left", 4) if value >= 0 else ("right", -4)
        axis.annotate(
            _signed(value, 1) + " %",
            (value, row),
            (shift, 0),
            textcoords="offset points",
            ha=side,
            va="center",
        )
    axis.axvline(0, color=style.PALE, linewidth=1)
    axis.set_xlim(low - (0.3 if low < 0 else 0.03) * reach, high + (0.3 if high > 0 else 0.03) * reach)
    axis.set_yticks(range(len(gains)), list(gains))
    axis.set_ylim(len(gains) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.grid(False, axis="y")
    axis.spines["left"].set_visible(False)
    axis.set_title("gain over training alone, %")


def _gains(comparison: Comparison) -> dict[str, float]:
    """Return each task's mean gain in %, where all its metrics have one."""
    found: dict[str, list[float | None]] = {}
    for gain in comparison.gains:
        found.setdefault(gain.task, []).append(gain.percent)
    return {
        task: math.fsum(p for p in percents if p is not None) / len(percents)
        for task, percents in found.items()
        if percents and None not in percents
    }


def _conflict_words(pairs: Pairs, known: Sequence[tuple[str, str]]) -> list[str]:
    if not known:
        return []
    (a, b), rate = known[0], pairs.mean(pairs.conflict, *known[0])
    if rate > 0.5 and pairs.mean(pairs.cosine, a, b) < -SLIGHT:
        return [f"{a} and {b} pull against each other in {rate:.0%} of the steps."]
    if len(known) == 1:
        return [f"{a} and {b} are in conflict in {rate:.0%} of the steps, and on average hardly are."]
    others = f"in conflict most often: {a} and {b}, in {rate:.0%} of the steps."
    return [f"On average no two tasks pull much against each other; {others}"]


def _gain_words(gains: Mapping[str, float]) -> list[str]:
    better = [task for task, gain in gains.items() if gain > 0]
    worse = [task for task, gain in gains.items() if gain < 0]
    if not gains:
        return []
    parts = [f"better together: {', '.join(better)}"] * bool(better)
    parts += [f"better apart: {', '.join(worse)}"] * bool(worse)
    text = "; ".join(parts) or "together and apart are equal"
    return [text[0].upper() + text[1:] + "."]


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _epochs(axis: Axes) -> None:
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(False, axis="x")


def _floats(values: Any) -> NDArray[Any]:
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def _numbers(values: NDArray[Any]) -> list[float | int | None]:
    return [number(value) for value in values.tolist()]


def _mean(values: NDArray[Any]) -> float:
    known = values[~np.isnan(values)]
    return math.fsum(known) / len(known) if len(known) else math.nan
