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
    busy machine does meanwhile. block: calls in a row that are timed together. untimed: whether a call that
    is not timed comes before each block, so that microseconds are not those of caches which hold somebody
    else's code. prepare: called before each block, not timed.
    """

    def __init__(
        self,
        steps: Steps,
        clock: Callable[[], float] = time.perf_counter,
        block: int = 1,
        untimed: bool = False,
        prepare: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.steps, self.clock, self.block, self.untimed = steps, clock, block, untimed
        self.prepare = prepare
        self.times: dict[str, list[float]] = {name: [] for name in steps}

    def __call__(self) -> None:
        """Do one round."""
        for name, step in self.steps.items():
            self.prepare(name)
            if self.untimed:
                step()
            begin = self.clock()
            for _ in range(self.block):
                step()
            self.times[name].append((self.clock() - begin) / self.block)

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
        for times in self.times.values():
            del times[0]
        return self

    def seconds(self, name: str) -> float:
        """Return the median time of one call."""
        return statistics.median(self.times[name])

    def ahead(self, name: str, other: str) -> float:
        """Return by how many times ``name`` is faster than ``other``: the median over the rounds."""
        pairs = zip(self.times[name], self.times[other], strict=True)
        return statistics.median(b / a for a, b in pairs)
