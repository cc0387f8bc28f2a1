"""Runs on the nodes of a Ray cluster, which need not share a disk: texts go out, records come back."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import NodeDiedError, ObjectLostError, RayError, WorkerCrashedError

from mtlbench.errors import Interrupted, MtlbenchError
from mtlbench.experiment import Experiment
from mtlbench.registry import Registry
from mtlbench.results import Cost, Record
from mtlbench.sweep.grid import Job
from mtlbench.sweep.state import State, begin, take
from mtlbench.sweep.worker import dump, load
from mtlbench.training.report import Silence

RETRIES = 3
"""So often a run is started anew that was lost with its node or its process: Ray can't always tell which."""

POLL = 0.2
"""Seconds between two looks at what has ended."""

Answer = tuple[str | None, str | None, str | None]
"""What a node sends: the texts of record and cost, or the error that kept the run from starting."""


class _Deaf(Silence):
    def notice(self, text: str) -> None:
        """Whoever planned the run has been told."""


def train(settings: str, plugins: Sequence[tuple[str, str]]) -> Answer:
    """Train one run on the node where this is called, in a folder that is gone afterwards.

    settings: as `worker.dump` writes them; the data folder is that of the node. plugins: (name, text) of
    files.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(number), name) for number, (name, _) in enumerate(plugins)]
        for file, (_, text) in zip(files, plugins, strict=True):
            file.parent.mkdir()
            file.write_text(text, encoding="utf-8")
        config = replace(load(settings), results=Path(folder, "results"), plugin=tuple(files))
        try:
            (result,) = Experiment(config, Registry(files)).execute(_Deaf(), lambda: False)
        except MtlbenchError as error:
            return None, None, str(error)
        cost = result.run.cost
        return result.run.record.dumps(), None if cost is None else cost.dumps(), None


def execute(
    jobs: Sequence[Job],
    *,
    address: str | None,
    cpus: int,
    gpus: float,
    watch: Callable[[Sequence[State]], None],
    notice: Callable[[str], None],
    stopped: Callable[[], bool],
) -> list[State]:
    """Train on a cluster; see `Executor`. Stopped, runs that are under way are given up.

    address: of a cluster; None starts one on this machine. cpus, gpus: what a run takes, parts of a GPU
    included. A run is held in the store while a node trains it, as by any other process.
    """
    states = begin(jobs)
    waiting = deque(state for state in states if state.state == "queued")
    if not waiting:
        watch(states)
        return states
    running: dict[Any, tuple[State, ExitStack]] = {}
    with _cluster(address):
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(train)
        if not _places(cpus, gpus):
            notice(f"no node of the cluster has {cpus} CPUs and {gpus:g} GPUs for a run; waiting for one")
        try:
            while waiting or running:
                if stopped():
                    raise Interrupted("the sweep was stopped; the same command goes on with the runs left")
                # One more than none: a cluster that grows does so only where something waits.
                while len(running) < max(1, _places(cpus, gpus)) and (state := take(waiting)) is not None:
                    held = _hold(state)
                    if held is None:
                        waiting.append(state)
                    elif state.look():
                        held.close()
                    else:
                        running[_submit(task, state)] = state, held
                if not running:
                    time.sleep(POLL)
                for ref in ray.wait(list(running), timeout=POLL)[0] if running else ():
                    state, held = running.pop(ref)
                    with held:
                        if _ended(ref, state, notice):
                            waiting.append(state)
                watch(states)
        finally:
            for ref, (_, held) in running.items():
                ray.cancel(ref, force=True)
                held.close()
    watch(states)
    return states


def _hold(state: State) -> ExitStack | None:
    """Hold a run in the store; None where another process does."""
    state.tries += 1
    with ExitStack() as stack:
        if stack.enter_context(state.job.experiment.store.claim(state.job.run_id)):
            return stack.pop_all()
    state.busy()
    return None


def _submit(task: Any, state: State) -> Any:
    state.state, state.began = "running", time.monotonic()
    config = state.job.config
    plugins = [(file.name, file.read_text(encoding="utf-8")) for file in config.plugin]
    return task.remote(dump(config), plugins)


def _ended(ref: Any, state: State, notice: Callable[[str], None]) -> bool:
    """Take in what a node sent, or that it sends no more; True where the job must be queued again."""
    job = state.job
    try:
        text, cost, error = ray.get(ref)
    except (NodeDiedError, ObjectLostError, WorkerCrashedError):
        return state.died("it was lost with its node or its process", notice, RETRIES)
    except RayError as failure:
        return state.died(str(failure).strip().splitlines()[-1], notice)
    if text is None:
        state.state, state.reason = "failed", error
        return False
    record = Record.loads(text, f"{job.run.label} from its node")
    if record.run_id != job.run_id:
        state.state = "failed"
        state.reason = f"its node has other code or data than this machine: it trained {record.run_id}"
        return False
    job.experiment.keep(record, None if cost is None else Cost.loads(cost))
    state.look()
    return False


def _places(cpus: int, gpus: float) -> int:
    """Return how many runs the nodes that are alive can train at once."""
    count = 0
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            has = node["Resources"]
            places = has.get("CPU", 0) // cpus
            count += int(min(places, has.get("GPU", 0) // gpus) if gpus else places)
    return count


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Be a driver of the cluster at ``address``, or of one on this machine that ends with the block."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    own = signal.getsignal(signal.SIGTERM)
    try:
        host, colon, port = (address or "").partition(":")
        if colon and port.isdigit():  # Ray itself would try for a minute
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise MtlbenchError(f"--address: no Ray cluster at '{address or 'local'}': {why}") from None
    signal.signal(signal.SIGTERM, own)  # Ray has one of its own that would end us in the midst
    try:
        yield
    finally:
        ray.shutdown()
