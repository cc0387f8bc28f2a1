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
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

from mtlbench.errors import Interrupted
from mtlbench.sweep.grid import Job
from mtlbench.sweep.state import State, begin, take
from mtlbench.sweep.worker import BUSY, dump


@dataclass
class _Process:
    """A worker: ``state`` is the job that it trains, None while it waits for one."""

    handle: subprocess.Popen[str]
    errors: IO[bytes]
    state: State | None = None
    message: str = ""


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


def execute(
    jobs: Sequence[Job],
    *,
    places: Sequence[dict[str, str]],
    watch: Callable[[Sequence[State]], None],
    notice: Callable[[str], None],
    stopped: Callable[[], bool],
) -> list[State]:
    """Train as many at once as there are places; see `Executor`. Stopped, every run keeps a checkpoint."""
    states = begin(jobs)
    waiting = deque(state for state in states if state.state == "queued")
    workers: list[_Process | None] = [None] * len(places)
    events: queue.Queue[tuple[_Process, dict[str, Any] | None]] = queue.Queue()
    try:
        while waiting or any(worker is not None and worker.state is not None for worker in workers):
            if stopped():
                raise Interrupted("the sweep was stopped; the same command goes on where it was")
            for place, worker in enumerate(workers):
                if (worker is None or worker.state is None) and (job := take(waiting)) is not None:
                    workers[place] = worker = worker or _start(places[place], events)
                    _give(worker, job)
            try:
                teller, event = events.get(timeout=0.2)
            except queue.Empty:
                watch(states)
                continue
            if event is not None and event["event"] != "ended":
                _follow(teller, event, notice)
                continue
            if event is None:
                workers[workers.index(teller)] = None
            code = teller.handle.returncode if event is None else event["code"]
            ended, teller.state = teller.state, None
            if ended is not None and _ended(teller, ended, code, died=event is None, notice=notice):
                waiting.append(ended)
            if event is None:
                _close(teller)
            watch(states)
    finally:
        _stop([worker for worker in workers if worker is not None])
    watch(states)
    return states


def _start(settings: dict[str, str], events: queue.Queue[tuple[_Process, dict[str, Any] | None]]) -> _Process:
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


def _give(worker: _Process, state: State) -> None:
    """Let a worker train a job; where it has died, its end tells."""
    state.state, state.began, state.start = "running", time.monotonic(), 0
    state.tries += 1
    worker.state, worker.message = state, ""
    assert worker.handle.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        worker.handle.stdin.write(dump(state.job.config) + "\n")
        worker.handle.stdin.flush()


def _follow(worker: _Process, event: dict[str, Any], notice: Callable[[str], None]) -> None:
    state = worker.state
    assert state is not None
    if event["event"] == "started":
        state.total, state.done, state.start = event["total"], event["done"], event["done"]
        state.began = time.monotonic()
    elif event["event"] == "step":
        state.done, state.epoch = event["done"], event["epoch"]
    elif event["event"] == "error":
        worker.message = event["text"]
    elif event["event"] == "notice":
        notice(event["text"])


def _ended(worker: _Process, state: State, code: int, died: bool, notice: Callable[[str], None]) -> bool:
    """Take note of how a job ended; True where it must be queued again."""
    if code == BUSY:
        state.busy()
        return True
    if state.look():
        return False
    if worker.message and not died:
        state.state, state.reason = "failed", worker.message
        return False
    reason = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    worker.errors.seek(0)
    if last := worker.errors.read().decode(errors="replace").strip().splitlines()[-1:]:
        reason += f": {last[0]}"
    return state.died(reason, notice)


def _stop(workers: Sequence[_Process]) -> None:
    """Let every worker keep a checkpoint and end; one that does not within a minute is killed."""
    for worker in workers:
        worker.handle.terminate()
    deadline = time.monotonic() + 60
    for worker in workers:
        try:
            worker.handle.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.handle.kill()
            worker.handle.wait()
        _close(worker)


def _close(worker: _Process) -> None:
    """Close what led to a worker that has ended."""
    worker.errors.close()
    assert worker.handle.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        worker.handle.stdin.close()
