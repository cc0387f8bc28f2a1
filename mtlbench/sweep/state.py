"""Where the jobs of a sweep stand, and what every executor is: jobs in, states out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mtlbench.results import Record
from mtlbench.sweep.grid import Job

RETRIES = 1
"""A run whose process died is started once more; then it is recorded as failed."""

AGAIN = 2.0
"""Seconds before a run that another process trains is looked at again."""

STATES = ("queued", "running", "done", "failed")


@dataclass
class State:
    """Where a job stands, for whoever shows it.

    done, total: steps. began: when its process was started (monotonic). reason: why it failed.
    """

    job: Job
    state: str = "queued"
    done: int = 0
    total: int = 0
    epoch: int = 0
    began: float = 0.0
    start: int = 0
    tries: int = 0
    reason: str | None = None
    record: Record | None = None
    busy_until: float = field(default=0.0, repr=False)

    @property
    def remaining(self) -> float | None:
        """Seconds to go, by the pace so far; None before there is one."""
        made = self.done - self.start
        if not made or not self.total:
            return None
        return (time.monotonic() - self.began) / made * (self.total - self.done)

    def look(self) -> bool:
        """Take over the record that the store has; False where it has none."""
        _, record = self.job.experiment.look(self.job.run)
        if record is None:
            return False
        self.record, self.reason = record, record.values["reason"]
        self.state = "done" if record.status == "ok" else "failed"
        return True

    def busy(self) -> None:
        """Queue a job again that another process trains."""
        self.state, self.tries = "queued", self.tries - 1
        self.busy_until = time.monotonic() + AGAIN

    def died(self, reason: str, notice: Callable[[str], None], retries: int = RETRIES) -> bool:
        """Take note that the process of a job died; True where it is queued once more."""
        if self.tries <= retries:
            notice(f"{self.job.run.label}: {reason}; it is started once more")
            self.state = "queued"
            return True
        words = f"its process died {self.tries} times: {reason}"
        self.record = self.job.experiment.give_up(self.job.run, words)
        self.state, self.reason = "failed", self.record.values["reason"]
        return False


class Executor(Protocol):
    """Trains what is not cached and returns how each job ended.

    watch: called often with all states. stopped: when it turns true, what runs is stopped and
    `mtlbench.errors.Interrupted` is raised; the same call goes on from there.
    """

    def __call__(
        self,
        jobs: Sequence[Job],
        *,
        watch: Callable[[Sequence[State]], None],
        notice: Callable[[str], None],
        stopped: Callable[[], bool],
    ) -> list[State]:
        """Train."""


def begin(jobs: Sequence[Job]) -> list[State]:
    """Return the states of jobs that nobody has touched; cached ones are over."""
    states = [State(job) for job in jobs]
    for state in states:
        if state.job.cached:
            state.look()
    return states


def take(waiting: deque[State]) -> State | None:
    """Take the next job that another process does not hold; None where there is none now."""
    for _ in range(len(waiting)):
        state = waiting.popleft()
        if state.busy_until <= time.monotonic():
            return state
        waiting.append(state)
    return None
