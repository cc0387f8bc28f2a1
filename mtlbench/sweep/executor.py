"""What every executor is: jobs in, states out. A new one says where attempts are made and how they end."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import ClassVar, Self

from mtlbench.errors import Interrupted
from mtlbench.sweep.grid import Job
from mtlbench.sweep.state import State, begin


class Executor(ABC):
    """Trains jobs somewhere. It is called with jobs as often as one likes, inside a ``with`` block.

    A subclass starts attempts and tells which have ended; when an attempt may start, what its end means and
    whether there is another one is the same everywhere, and here.
    """

    retries: ClassVar[int] = 1
    """So often a job is started anew whose process died; then it is recorded as failed."""

    @abstractmethod
    def room(self) -> bool:
        """Say whether another attempt can start now; asked only while a job waits."""

    def adopt(self, state: State) -> bool:
        """Take over an attempt that an earlier sweep has left under way; False where there is none."""
        return False

    @abstractmethod
    def start(self, state: State) -> None:
        """Let a process train the job, in its settings' results folder or so that its record gets there.

        The process must hold the run's claim on the store, or this one for it.
        """

    @abstractmethod
    def poll(self) -> Iterable[tuple[State, str | None]]:
        """Wait a moment, let states `hear` what came in, and give the attempts that ended.

        With each comes how its process died; None where it came to its end.
        """

    @abstractmethod
    def stop(self) -> None:
        """Leave everything so that the same jobs can go on later; called once, at the end of the block."""

    def notice(self, text: str) -> None:
        """Tell the user, once, however many processes say it."""
        if text not in self._told:
            self._told.add(text)
            self._notice(text)

    def __call__(
        self,
        jobs: Sequence[Job],
        *,
        watch: Callable[[Sequence[State]], None],
        notice: Callable[[str], None],
        stopped: Callable[[], bool],
    ) -> list[State]:
        """Train what is not cached and return how each job ended.

        watch: called often with all states. stopped: when it turns true, `mtlbench.errors.Interrupted` is
        raised; the same call goes on from there.
        """
        self._notice = notice
        states = begin(jobs)
        waiting = deque(state for state in states if state.state == "queued")
        running = 0
        while waiting or running:
            if stopped():
                raise Interrupted("the sweep was stopped; the same command goes on where it was")
            while not stopped() and waiting and self.room() and (state := _take(waiting)) is not None:
                if state.look():  # another sweep has made it meanwhile
                    continue
                state.attempt()
                if not self.adopt(state):
                    if state.job.experiment.store.held(state.job.run_id):
                        state.busy()
                        waiting.append(state)
                        continue
                    self.start(state)
                running += 1
            for state, death in self.poll():
                running -= 1
                if state.ended(death, notice, self.retries):
                    waiting.append(state)
            watch(states)
        watch(states)
        return states

    def __enter__(self) -> Self:
        self._told: set[str] = set()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _take(waiting: deque[State]) -> State | None:
    """Take the next job that another process does not hold; None where there is none now."""
    for _ in range(len(waiting)):
        state = waiting.popleft()
        if state.busy_until <= time.monotonic():
            return state
        waiting.append(state)
    return None
