"""What trains a job in a process of its own, wherever that is, and tells how it goes.

An event is a dict that can be written as JSON: ``started`` (total, done: steps), ``step`` (done, epoch),
``notice`` (text) and ``error`` (text: why the run can't start).

``python -m mtlbench.sweep.worker`` is such a process on this machine: settings in on stdin, events out on
stdout, a line of JSON each. An end of stdin tells that whoever started it is gone: then it keeps a checkpoint
and ends, so that no run goes on unseen. It takes one job after another, since to start torch takes longer
than many a small run; ``ended`` (death) tells the end of one.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from mtlbench.config import RunConfig
from mtlbench.errors import Busy, Interrupted, MtlbenchError

EVERY = 0.5
"""Seconds between two events of the same run."""

PATIENCE = 60
"""Seconds that a process has to keep its checkpoint and end, when it was told to."""

LONGEST = 300
"""Characters of an error's last line that are told."""


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


def last_line(file: IO[bytes]) -> str:
    """Return, after a colon, the last line from here to the end of ``file``; nothing where there is none."""
    tail = b""
    while more := file.read(2**20):
        tail = (tail + more).rstrip()[-4 * LONGEST :]
    said = tail.decode(errors="replace").splitlines()[-1:]
    return f": {said[0].strip()[-LONGEST:]}" if said else ""


class _Events:
    """A watcher that tells what happens as events, steps at most so often."""

    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        self.say = say
        self.steps = self.made = 0
        self.last = -EVERY

    def notice(self, text: str) -> None:
        self.say({"event": "notice", "text": text})

    def started(self, label: str, epochs: int, steps: int, done: int) -> None:
        self.steps, self.made = steps, done * steps
        self.say({"event": "started", "total": epochs * steps, "done": self.made})

    def stepped(self, losses: Mapping[str, float]) -> None:
        self.made += 1
        if time.monotonic() - self.last >= EVERY:
            self.last = time.monotonic()
            self.say({"event": "step", "done": self.made, "epoch": self.made // max(self.steps, 1) + 1})

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.made = row["epoch"] * self.steps

    def finished(self, status: str, reason: str | None) -> None:
        """The record tells."""


def train(
    config: RunConfig,
    say: Callable[[dict[str, Any]], None],
    stopped: Callable[[], bool],
    loaded: MutableMapping[tuple[str, str], Any] | None = None,
) -> str | None:
    """Train one job and return None, or what kept it from its end: it was stopped, or a plugin has a bug.

    Otherwise the store has its record, or an ``error`` was said, or another process trains it.
    """
    from mtlbench.experiment import Experiment
    from mtlbench.registry import Registry
    from mtlbench.training.memory import keep_freed_memory

    keep_freed_memory()
    try:
        Experiment(config, Registry(config.plugin), loaded=loaded).execute(_Events(say), stopped, wait=False)
    except Busy:
        pass
    except Interrupted:
        return "it was told to stop, and left a checkpoint"
    except MtlbenchError as error:
        say({"event": "error", "text": str(error)})
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST]
    return None


def main() -> None:
    """Train one job after another, as they come, until stdin ends."""
    jobs: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # a signal may put, too
    stop = threading.Event()
    out = sys.stdout

    def ended(*_: Any) -> None:
        stop.set()
        jobs.put(None)

    def listen() -> None:
        for line in sys.stdin:
            jobs.put(line)
        ended()
        time.sleep(PATIENCE)
        os._exit(1)  # what hangs would go on for ever, now that nobody watches

    def say(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=out, flush=True)

    threading.Thread(target=listen, daemon=True).start()

    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (what a plugin prints is no event)
    signal.signal(signal.SIGTERM, ended)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep decides; a terminal sends it to all at once
    loaded: dict[tuple[str, str], Any] = {}
    death = None
    while death is None and (line := jobs.get()) is not None and not stop.is_set():
        death = train(load(line), say, stop.is_set, loaded)  # after a bug CUDA may be unusable
        say({"event": "ended", "death": death})
    out.flush()


if __name__ == "__main__":
    main()
    os._exit(0)  # the thread that waits for the end of stdin would hold the interpreter
