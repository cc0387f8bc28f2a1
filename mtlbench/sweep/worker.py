"""Jobs in a process of their own: settings in on stdin, events out on stdout, a line of JSON each.

An end of stdin tells that whoever started ``python -m mtlbench.sweep.worker`` is gone: then it keeps a
checkpoint and ends, so that no run goes on unseen. It takes one job after another, since to start torch takes
longer than many a small run.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtlbench.config import RunConfig
from mtlbench.errors import Busy, MtlbenchError

BUSY = 75
"""The exit code where another process trains the same run (EX_TEMPFAIL: try again later)."""

EVERY = 0.5
"""Seconds between two events of the same run."""


def dump(config: RunConfig) -> str:
    """Write settings as one line of JSON."""
    values = {k: [str(p) for p in v] if k == "plugin" else v for k, v in asdict(config).items()}
    return json.dumps(values, default=str)


def load(line: str) -> RunConfig:
    """Read what `dump` wrote."""
    values = json.loads(line)
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(value)
    for name in ("results", "data_dir"):
        values[name] = None if values[name] is None else Path(values[name])
    values["plugin"] = tuple(map(Path, values["plugin"]))
    return RunConfig(**values)


_OUT = sys.stdout


def _say(**event: Any) -> None:
    print(json.dumps(event), file=_OUT, flush=True)


class _Events:
    """A watcher that writes what happens as lines of JSON."""

    def __init__(self) -> None:
        self.steps = self.made = 0
        self.last = -EVERY

    def notice(self, text: str) -> None:
        _say(event="notice", text=text)

    def started(self, label: str, epochs: int, steps: int, done: int) -> None:
        self.steps, self.made = steps, done * steps
        _say(event="started", total=epochs * steps, done=self.made)

    def stepped(self, losses: Mapping[str, float]) -> None:
        self.made += 1
        if time.monotonic() - self.last >= EVERY:
            self.last = time.monotonic()
            _say(event="step", done=self.made, epoch=self.made // max(self.steps, 1) + 1)

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.made = row["epoch"] * self.steps

    def finished(self, status: str, reason: str | None) -> None:
        _say(event="finished", status=status, reason=reason)


def main() -> None:
    """Train one job after another, as they come, until stdin ends."""
    jobs: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # a signal may put, too
    stop = threading.Event()

    def ended(*_: Any) -> None:
        stop.set()
        jobs.put(None)

    def listen() -> None:
        for line in sys.stdin:
            jobs.put(line)
        ended()

    threading.Thread(target=listen, daemon=True).start()

    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (what a plugin prints is no event)
    signal.signal(signal.SIGTERM, ended)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep decides; a terminal sends it to all at once
    loaded: dict[tuple[str, str], Any] = {}
    while (line := jobs.get()) is not None and not stop.is_set():
        _say(event="ended", code=_job(load(line), loaded, stop))


def _job(config: RunConfig, loaded: dict[tuple[str, str], Any], stop: threading.Event) -> int:
    """Train one job and return its code: 0 for a record, 75 for busy, else as the command line."""
    from mtlbench.experiment import Experiment
    from mtlbench.registry import Registry
    from mtlbench.training.memory import keep_freed_memory

    keep_freed_memory()
    try:
        Experiment(config, Registry(config.plugin), loaded=loaded).execute(_Events(), stop.is_set, wait=False)
    except Busy:
        return BUSY
    except MtlbenchError as error:
        _say(event="error", text=str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # the thread that waits for the end of stdin would hold the interpreter
