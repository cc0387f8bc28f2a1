"""Runs on the nodes of a Ray cluster, which need not share a disk: texts go out, records come back."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import ray
from ray.exceptions import NodeDiedError, ObjectLostError, RayError, WorkerCrashedError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mtlbench.errors import MtlbenchError
from mtlbench.results import Cost, Record, Store
from mtlbench.sweep import worker
from mtlbench.sweep.executor import Executor
from mtlbench.sweep.state import State

POLL = 0.2
"""Seconds between two looks at what has ended."""

Answer = tuple[str | None, str | None, str | None]
"""What a node sends: the texts of record and cost, or how the process came to nothing."""


def train(name: str, settings: str, plugins: Sequence[tuple[str, str]], events: Queue) -> Answer:
    """Train one run on the node where this is called, in a folder that is gone afterwards.

    name: what it is called in ``events``, which takes what happens. settings: as `worker.dump` writes them;
    the data folder is that of the node. plugins: (name, text) of files.
    """

    def say(event: dict[str, Any]) -> None:
        with suppress(RayError):  # without news a run goes on
            events.put_nowait((name, event))

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(number), file) for number, (file, _) in enumerate(plugins)]
        for file, (_, text) in zip(files, plugins, strict=True):
            file.parent.mkdir()
            file.write_text(text, encoding="utf-8")
        store = Store(Path(folder, "results"))
        death = worker.train(
            replace(worker.load(settings), results=store.root, plugin=tuple(files)), say, lambda: False
        )
        for record in store.records():
            cost = store.cost(record)
            return record.dumps(), None if cost is None else cost.dumps(), None
    return None, None, death


class Ray(Executor):
    """Trains on a cluster, as many at once as it has room for; stopped, runs that are under way are given up.

    address: of a cluster; None starts one on this machine when there is something to train. cpus, gpus: what
    a run takes, parts of a GPU included. A run is held in the store while a node trains it, as by any other
    process.
    """

    retries: ClassVar[int] = 3  # Ray can't always tell a node that is lost from a process that died

    def __init__(self, address: str | None, cpus: int, gpus: float) -> None:
        self.address, self.cpus, self.gpus = address, cpus, gpus
        self.cluster = ExitStack()
        self.task: Any = None
        self.events: Any = None
        self.running: dict[Any, tuple[State, ExitStack]] = {}
        self.given_back: list[State] = []

    def room(self) -> bool:
        """Say whether a node is free; one more than none, since a cluster may grow where something waits."""
        if self.task is None:
            self._connect()
        return len(self.running) < max(1, self._places())

    def start(self, state: State) -> None:
        """Hold the run in the store and send it out."""
        config, name = state.job.config, state.job.run_id
        with ExitStack() as stack:
            if not stack.enter_context(state.job.experiment.store.claim(name)):
                self.given_back.append(state)
                return
            plugins = [(file.name, file.read_text(encoding="utf-8")) for file in config.plugin]
            ref = self.task.remote(name, worker.dump(config), plugins, self.events)
            self.running[ref] = state, stack.pop_all()

    def poll(self) -> Iterator[tuple[State, str | None]]:
        """Take in events and what nodes send."""
        ended = ray.wait(list(self.running), timeout=POLL)[0] if self.running else []
        self._hear()
        while self.given_back:
            yield self.given_back.pop(), None
        for ref in ended:
            state, held = self.running.pop(ref)
            with held:
                yield state, self._take_in(ref, state)

    def stop(self) -> None:
        """Give up what runs, and a cluster of our own."""
        for ref, (_, held) in self.running.items():
            ray.cancel(ref, force=True)
            held.close()
        self.cluster.close()

    def _hear(self) -> None:
        states = {state.job.run_id: state for state, _ in self.running.values()}
        with suppress(RayError):
            for name, event in self.events.get_nowait_batch(self.events.qsize()):
                if name in states:
                    states[name].hear(event, self.notice)

    def _take_in(self, ref: Any, state: State) -> str | None:
        """Keep what a node has sent; return how its process died if it sends no more."""
        job = state.job
        try:
            answer: Answer = ray.get(ref)
        except (NodeDiedError, ObjectLostError, WorkerCrashedError):
            return "it was lost with its node or its process"
        except RayError as failure:
            return str(failure).strip().splitlines()[-1]
        text, cost, death = answer
        if text is None:
            state.error = state.error or "its node says no reason"
            return death
        record = Record.loads(text, f"{job.run.label} from its node")
        if record.run_id == job.run_id:
            job.experiment.keep(record, None if cost is None else Cost.loads(cost))
        else:
            state.error = f"its node has other code or data than this machine: it trained {record.run_id}"
        return None

    def _places(self) -> int:
        """Return how many runs the nodes that are alive can train at once."""
        count = 0
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            if node["Alive"]:
                has = node["Resources"]
                places = has.get("CPU", 0) // self.cpus
                count += int(min(places, has.get("GPU", 0) // self.gpus) if self.gpus else places)
        return count

    def _connect(self) -> None:
        """Be a driver of the cluster, or of one on this machine that ends with us."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        own = signal.getsignal(signal.SIGTERM)
        try:
            host, colon, port = (self.address or "").partition(":")
            if colon and port.isdigit():  # Ray itself would try for a minute
                socket.create_connection((host, int(port)), timeout=5).close()
            ray.init(address=self.address or "local", log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
            why = " ".join(str(error).split())
            raise MtlbenchError(f"--address: no Ray cluster at '{self.address or 'local'}': {why}") from None
        self.cluster.callback(ray.shutdown)
        signal.signal(signal.SIGTERM, own)  # Ray has one of its own that would end us in the midst
        self.task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)(train)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self.events = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        if not self._places():
            self.notice(
                f"no node of the cluster has {self.cpus} CPUs and {self.gpus:g} GPUs for a run;"
                " waiting for one"
            )
