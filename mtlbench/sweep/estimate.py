"""How long a sweep will take, from what its runs have cost before or from a short probe."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace

import torch

from mtlbench.errors import Interrupted
from mtlbench.sweep.grid import Job, Plan
from mtlbench.training.loop import train
from mtlbench.training.report import Silence

STEPS = 4
"""Steps of a probe; the first one is warm-up and does not count."""


class _Clock(Silence):
    """Hears the steps of a run and notes when they were made."""

    def __init__(self) -> None:
        self.total = 0
        self.times: list[float] = []

    def started(self, label: str, epochs: int, steps: int, done: int) -> None:
        """Take note of how many steps the whole run has."""
        self.total = epochs * steps

    def stepped(self, losses: Mapping[str, float]) -> None:
        """Take note of the time."""
        self.times.append(time.perf_counter())


def estimate(plan: Plan, jobs: int) -> str:
    """Return lines for people: runs, how many are there, and the time with ``jobs`` of them at once.

    A run whose other seeds are in the store costs what they did; otherwise a few steps are timed. On CPU,
    runs at once share the cores, so they are taken to last as long as one after another.
    """
    waiting = [job for job in plan.jobs if not job.cached]
    seconds: dict[str, float] = {}
    total = 0.0
    for job in waiting:
        kind = _kind(job)
        if kind not in seconds:
            seconds[kind] = _known(job, plan) or probe(job)
        total += seconds[kind]
    baselines = sum(job.baseline for job in plan.jobs)
    lines = [
        f"{len(plan.jobs)} runs, {baselines} of them single-task baselines; "
        f"{len(plan.jobs) - len(waiting)} are there already, {len(waiting)} to train"
    ]
    lines += [f"left out: {title}: {why}" for title, why in plan.refused]
    if waiting:
        total /= min(jobs, max(1, torch.cuda.device_count()))
        words = f"{total / 3600:.1f} hours" if total >= 3600 else f"{math.ceil(total / 60)} minutes"
        lines.append(f"about {words} on this machine, if no run stops early")
    return "\n".join(lines)


def _kind(job: Job) -> str:
    """What jobs of equal cost have in common: all but the seed."""
    return str(replace(job.run, seed=0))


def _known(job: Job, plan: Plan) -> float | None:
    """Return the mean time of the same run with other seeds, where the store has it."""
    times = []
    for other in plan.jobs:
        if other.cached and _kind(other) == _kind(job):
            _, record = other.experiment.look(other.run)
            cost = None if record is None else other.experiment.store.cost(record)
            if cost is not None:
                times.append(cost.seconds)
    return statistics.mean(times) if times else None


def probe(job: Job) -> float:
    """Time a few steps and return how many seconds the whole run would take.

    Validation is a forward pass, a third of a step, on the share of samples that are held out.
    """
    clock, dataset = _Clock(), job.experiment.dataset
    with contextlib.suppress(Interrupted):
        train(job.run, dataset, job.experiment.device, clock, stopped=lambda: len(clock.times) >= STEPS)
    gaps = [later - earlier for earlier, later in zip(clock.times, clock.times[1:], strict=False)]
    if not gaps:
        return 0.0
    counts = dataset.counts()
    sizes = {
        name: sum(n for part, n in counts.items() if part.partition("/")[0] == name)
        for name in ("train", "val")
    }
    return clock.total * statistics.median(gaps) * (1 + sizes["val"] / max(sizes["train"], 1) / 3)
