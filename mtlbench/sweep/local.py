"""Runs on this machine, in processes of their own, so that a run that dies takes nothing with it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from mtlbench.sweep.executor import Executor
from mtlbench.sweep.state import State
from mtlbench.sweep.worker import PATIENCE, dump, last_line


@dataclass
class _Process:
    """A worker: ``state`` is the job that it trains, None while it waits for one.

    errors: takes its stderr; what was written for this job begins at ``since``.
    """

    handle: subprocess.Popen[str]
    errors: IO[bytes]
    state: State | None = None
    since: int = 0


def slots(jobs: int, devices: int, threads: int) -> list[dict[str, str]]:
    """Return the environment of each of ``jobs`` places: a CUDA device each in turn, or a share of the cores.

    devices: CUDA devices of this machine. threads: cores. A number of threads that the user has set stays.
    """
    share = str(max(1, threads // jobs))
    found = []
    for place in range(jobs):
        settings = (
            {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": share, "MKL_NUM_THREADS": share}
        )
        if devices:
            settings["CUDA_VISIBLE_DEVICES"] = str(place % devices)
        found.append(settings)
    return found


class Local(Executor):
    """Trains as many at once as there are places; stopped, every run keeps a checkpoint.

    places: the environment of each, see `slots`.
    """

    def __init__(self, places: Sequence[Mapping[str, str]]) -> None:
        self.places = places
        self.workers: list[_Process | None] = [None] * len(places)
        self.events: queue.Queue[tuple[_Process, dict[str, Any] | None]] = queue.Queue()

    def room(self) -> bool:
        """Say whether a place is free."""
        return any(worker is None or worker.state is None for worker in self.workers)

    def start(self, state: State) -> None:
        """Give the job to a worker that is free; where that has died, its end tells."""
        worker = next(
            (worker for worker in self.workers if worker is not None and worker.state is None), None
        )
        if worker is None:
            place = self.workers.index(None)
            self.workers[place] = worker = _start(self.places[place], self.events)
        worker.state, worker.since = state, os.fstat(worker.errors.fileno()).st_size
        assert worker.handle.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            worker.handle.stdin.write(dump(state.job.config) + "\n")
            worker.handle.stdin.flush()

    def poll(self) -> Iterator[tuple[State, str | None]]:
        """Take in what workers say."""
        with contextlib.suppress(queue.Empty):
            worker, event = self.events.get(timeout=0.2)
            while True:
                state = worker.state
                if event is None:
                    self._release(worker)
                    if state is not None:
                        yield state, _death(worker)
                    _close(worker)
                elif event["event"] == "ended":
                    assert state is not None
                    worker.state = None
                    if event["death"] is not None:
                        self._release(worker)  # it ends by itself
                    yield state, event["death"]
                else:
                    assert state is not None
                    state.hear(event, self.notice)
                worker, event = self.events.get_nowait()

    def _release(self, worker: _Process) -> None:
        """Make room where a worker was."""
        self.workers = [None if found is worker else found for found in self.workers]

    def stop(self) -> None:
        """Let every worker keep a checkpoint and end; one that does not in time, or at once, is killed."""
        workers = [worker for worker in self.workers if worker is not None]
        for worker in workers:
            worker.handle.terminate()
        deadline = time.monotonic() + PATIENCE
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                for worker in workers:
                    worker.handle.wait(max(0, deadline - time.monotonic()))
        finally:  # the user may insist
            for worker in workers:
                worker.handle.kill()
                worker.handle.wait()
                _close(worker)


def _start(
    settings: Mapping[str, str], events: queue.Queue[tuple[_Process, dict[str, Any] | None]]
) -> _Process:
    errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the process has ended)
    handle = subprocess.Popen(
        [sys.executable, "-m", "mtlbench.sweep.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **settings},
        start_new_session=True,  # Ctrl-C is for the sweep, which then stops its processes one by one
    )
    worker = _Process(handle, errors)

    def listen() -> None:
        assert handle.stdout is not None
        with handle.stdout:
            for line in handle.stdout:
                if line.endswith("}\n"):  # a killed process may leave its last line torn
                    events.put((worker, json.loads(line)))
        handle.wait()
        events.put((worker, None))

    threading.Thread(target=listen, daemon=True).start()
    return worker


def _death(worker: _Process) -> str:
    """Say how a worker died: by which signal or exit code, and the last line that it wrote."""
    code = worker.handle.returncode
    reason = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    worker.errors.seek(worker.since)
    return reason + last_line(worker.errors)


def _close(worker: _Process) -> None:
    """Close what led to a worker that has ended."""
    worker.errors.close()
    assert worker.handle.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        worker.handle.stdin.close()
