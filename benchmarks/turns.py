"""Timing that a busy machine slows alike for everybody: all take turns, and each turn gives a ratio."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Steps = Mapping[str, Callable[[], object]]


class Turns:
    """Times each of ``steps`` once in every round.

    clock: what tells the time; of something that runs on one thread `time.process_time` leaves out what a
    busy machine does meanwhile. block: calls in a row that are timed together. again: whether another call
    comes before each block, as steps of training follow each other, so that the times are not those of caches
    and free memory that somebody else has left; what it took is in `first`. prepare: called before that call
    and before each block, not timed.
    """

    def __init__(
        self,
        steps: Steps,
        clock: Callable[[], float] = time.perf_counter,
        block: int = 1,
        again: bool = False,
        prepare: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.steps, self.clock, self.block, self.again = steps, clock, block, again
        self.prepare = prepare
        self.times: dict[str, list[float]] = {name: [] for name in steps}
        self.first: dict[str, list[float]] = {name: [] for name in steps if again}

    def __call__(self) -> None:
        """Do one round."""
        for name, step in self.steps.items():
            if self.again:
                self.first[name].append(self._time(name, step, 1))
            self.times[name].append(self._time(name, step, self.block))

    def _time(self, name: str, step: Callable[[], object], block: int) -> float:
        self.prepare(name)
        begin = self.clock()
        for _ in range(block):
            step()
        return (self.clock() - begin) / block

    def run(self, benchmark: Any, seconds: float, most: int = 60) -> Turns:
        """Do as many rounds as fit in ``seconds``, at least 3; what the first one took is forgotten."""
        begin = time.perf_counter()
        self()
        rounds = int(seconds / max(time.perf_counter() - begin, 1e-9))
        gc.collect()
        gc.disable()
        try:
            benchmark.pedantic(self, rounds=min(max(rounds, 3), most))
        finally:
            gc.enable()
        for times in (*self.times.values(), *self.first.values()):
            del times[0]
        return self

    def seconds(self, name: str) -> float:
        """Return the median time of one call."""
        return statistics.median(self.times[name])

    def ahead(self, name: str, other: str, first: bool = False) -> float:
        """Return by how many times ``name`` is faster than ``other``: the median over the rounds.

        first: in the calls that came after somebody else's.
        """
        times = self.first if first else self.times
        return statistics.median(b / a for a, b in zip(times[name], times[other], strict=True))
