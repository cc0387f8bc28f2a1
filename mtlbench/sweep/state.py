"""Where a job of a sweep stands, from what its process tells and how it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtlbench.results import Record
from mtlbench.sweep.grid import Job

AGAIN = 2.0
"""Seconds before a run that another process trains is looked at again."""


@dataclass
class State:
    """Where a job stands, for whoever shows it.

    state: ``queued``, ``running``, ``done`` or ``failed``. done, total: steps; start: those that were made
    before this attempt. began: when it was started (monotonic). reason: why it failed. error: what the
    process said that keeps the run from starting anywhere.
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
    error: str | None = None
    busy_until: float = field(default=0.0, repr=False)

    @property
    def remaining(self) -> float | None:
        """Seconds to go, by the pace so far; None before there is one."""
        made = self.done - self.start
        if made <= 0 or not self.total:
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

    def attempt(self) -> None:
        """Take note that a process is asked to train the job."""
        self.state, self.began, self.start, self.error = "running", time.monotonic(), 0, None
        self.tries += 1

    def hear(self, event: Mapping[str, Any], notice: Callable[[str], None]) -> None:
        """Take in what the process tells; see `mtlbench.sweep.worker`."""
        if event["event"] == "started":
            self.state, self.began = "running", time.monotonic()
            self.total, self.done, self.start = event["total"], event["done"], event["done"]
        elif event["event"] == "step":
            self.done, self.epoch = event["done"], event["epoch"]
        elif event["event"] == "error":
            self.error = event["text"]
        elif event["event"] == "notice":
            notice(event["text"])

    def busy(self) -> None:
        """Queue a job again that another process trains: that was no attempt."""
        self.state, self.busy_until = "queued", time.monotonic() + AGAIN
        self.tries -= 1

    def ended(self, death: str | None, notice: Callable[[str], None], retries: int) -> bool:
        """Take note of the end of an attempt; True where the job is queued again.

        death: how its process died; None where it came to an end by itself. Such a process has left a record
        or said an error, or the run was held by another.
        """
        if self.look():
            return False
        if death is None and self.error is None:
            self.busy()
            return True
        if death is None:
            self.state, self.reason = "failed", self.error
            return False
        if self.tries <= retries:
            notice(f"{self.job.run.label}: {death}; it is started once more")
            self.state = "queued"
            return True
        words = f"its process died {self.tries} times: {death}"
        self.record = self.job.experiment.give_up(self.job.run, words)
        self.state, self.reason = "failed", self.record.values["reason"]
        return False


def begin(jobs: Sequence[Job]) -> list[State]:
    """Return the states of jobs that nobody has touched; cached ones are over."""
    states = [State(job) for job in jobs]
    for state in states:
        if state.job.cached:
            state.look()
    return states
