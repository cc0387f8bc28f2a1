"""Δ-MTL: what training together gained over training apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from mtlbench.results.record import Record

TINY = 1e-8
"""A baseline this near to zero makes a relative gain meaningless; it is said, not divided."""


class Gain(NamedTuple):
    """One metric of one task, beside its baseline.

    value, baseline: the test scores, None where there is none. percent: the signed relative gain in %,
    positive where the run is better whatever the metric's direction; None where undefined, and ``why``
    then says why.
    """

    task: str
    metric: str
    unit: str
    higher_is_better: bool
    value: float | None
    baseline: float | None
    percent: float | None
    why: str | None
    auxiliary: bool


@dataclass(frozen=True)
class Comparison:
    """A run beside its single-task baselines: the gains, and Δ-MTL in %.

    delta: mean over tasks of the mean over the task's metrics. delta_flat: mean over all metrics. Both are
    None where a gain that enters them is undefined. Auxiliary tasks are listed and do not enter.
    """

    gains: tuple[Gain, ...]
    delta: float | None
    delta_flat: float | None


@dataclass(frozen=True)
class Summary:
    """Mean over seeds with the half-width of its Student-t 95 % interval (None for one seed)."""

    mean: float
    half_width: float | None
    n: int


def compare(record: Record, baselines: Mapping[str, Record]) -> Comparison:
    """Compare a run with the single-task records of its tasks (by task name; missing ones allowed)."""
    gains = []
    for task in record.values["spec"]["tasks"]:
        scores = record.values["data"]["metrics"][task]
        run_scores = record.values["metrics"].get(task, {})
        base = baselines.get(task)
        base_scores = base.values["metrics"].get(task, {}) if base else {}
        for name, metric in scores.items():
            value = run_scores.get(name)
            reference = base_scores.get(name)
            percent, why = _gain(value, reference, metric["higher_is_better"], record, base)
            gains.append(
                Gain(task, name, metric["unit"], metric["higher_is_better"], value, reference, percent, why,
                     metric["auxiliary"])
            )  # fmt: skip
    counted = [gain for gain in gains if not gain.auxiliary]
    if not counted or any(gain.percent is None for gain in counted):
        return Comparison(tuple(gains), None, None)
    by_task: dict[str, list[float]] = {}
    for gain in counted:
        by_task.setdefault(gain.task, []).append(gain.percent or 0.0)
    delta = math.fsum(mean(percents) for percents in by_task.values()) / len(by_task)
    return Comparison(tuple(gains), delta, mean([gain.percent or 0.0 for gain in counted]))


def _gain(
    value: float | None, baseline: float | None, higher: bool, record: Record, base: Record | None
) -> tuple[float | None, str | None]:
    if record.status != "ok":
        return None, f"the run {record.status}"
    if base is None:
        return None, "no baseline"
    if base.status != "ok":
        return None, f"the baseline {base.status}"
    if value is None or baseline is None:
        return None, "no label in the test split"
    if abs(baseline) < TINY:
        return None, "the baseline is zero"
    return (100 if higher else -100) * (value - baseline) / abs(baseline), None


def mean(values: Sequence[float]) -> float:
    """Return the mean; exactly rounded, so that it does not depend on the order."""
    return math.fsum(values) / len(values)


def summarise(values: Sequence[float]) -> Summary:
    """Return mean and Student-t 95 % interval over seeds (standard deviation with n - 1)."""
    n = len(values)
    centre = mean(values)
    if n < 2:
        return Summary(centre, None, n)
    deviation = math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (n - 1))
    return Summary(centre, _quantile(n - 1) * deviation / math.sqrt(n), n)


@cache
def _quantile(freedom: int) -> float:
    """Return the 97.5 % point of Student's t; asked for a few numbers of seeds, thousands of times."""
    from scipy.stats import t  # a second of start-up that a single seed need not pay

    return float(t.ppf(0.975, freedom))
