"""One job in a process of its own: settings in on stdin, events out on stdout, a line of JSON each.

``python -m mtlbench.sweep.worker`` reads one line. While it trains, an end of stdin tells that whoever
started it is gone: then it keeps a checkpoint and ends, so that no run goes on unseen.
"""

from __future__ import annotations

import json
import os
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


class _Events:
    """A watcher that writes what happens as lines of JSON."""

    def __init__(self) -> None:
        self.steps = self.made = 0
        self.last = -EVERY

    def _say(self, **event: Any) -> None:
        print(json.dumps(event), flush=True)

    def notice(self, text: str) -> None:
        self._say(event="notice", text=text)

    def started(self, label: str, epochs: int, steps: int, done: int) -> None:
        self.steps, self.made = steps, done * steps
        self._say(event="started", total=epochs * steps, done=self.made)

    def stepped(self, losses: Mapping[str, float]) -> None:
        self.made += 1
        if time.monotonic() - self.last >= EVERY:
            self.last = time.monotonic()
            self._say(event="step", done=self.made, epoch=self.made // max(self.steps, 1) + 1)

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.made = row["epoch"] * self.steps

    def finished(self, status: str, reason: str | None) -> None:
        self._say(event="finished", status=status, reason=reason)


def main() -> int:
    """Train the job and return the exit code: 0 for a record, 75 for busy, else as the command line."""
    config = load(sys.stdin.readline())
    stop = threading.Event()

    def orphaned() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=orphaned, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep decides; a terminal sends it to all at once
    events = _Events()
    try:
        from mtlbench.experiment import Experiment
        from mtlbench.registry import Registry

        Experiment(config, Registry(config.plugin)).execute(events, stop.is_set, wait=False)
    except Busy:
        return BUSY
    except MtlbenchError as error:
        events._say(event="error", text=str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the thread that waits for the end of stdin would hold the interpreter
