"""Where the time of a run goes: what ``--profile`` measures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mtlbench.gradients import GradientEngine

STEP = {
    "data": "waiting for data",
    "move": "to the device, normalised",
    "forward": "forward, losses",
    "gradients": "gradients",
    "weighting": "Gram matrix, weights, combination",
    "optimiser": "optimiser",
    "rest": "all else",
}
"""What a training step is made of, in words."""

BESIDE = {
    "evaluation data": "evaluation: waiting for data",
    "evaluation": "evaluation: model, metrics",
    "keep": "between epochs: checkpoints",
}
"""What a run does beside its steps."""

EVENTS = 4096
"""Events of a GPU that are kept before they are read."""


@dataclass(frozen=True)
class Profile:
    """What a clock found. steps: of training. seconds: by phase, those of `STEP` and those of `BESIDE`."""

    steps: int
    seconds: dict[str, float]

    @property
    def training(self) -> float:
        """Seconds of all training steps."""
        return sum(self.seconds[phase] for phase in STEP)

    @property
    def total(self) -> float:
        """Seconds of the run."""
        return sum(self.seconds.values())

    @property
    def waiting(self) -> float:
        """The share of training steps that is spent waiting for data, in 0..1."""
        return self.seconds["data"] / self.training if self.training else 0.0

    def values(self) -> dict[str, Any]:
        """Return the profile as JSON has it."""
        return {
            "steps": self.steps,
            "seconds": {phase: round(seconds, 6) for phase, seconds in self.seconds.items()},
            "training": round(self.training, 6),
            "total": round(self.total, 6),
            "waiting": round(self.waiting, 6),
        }

    def dumps(self) -> str:
        """Return the sidecar file's text."""
        return json.dumps(self.values(), indent=1) + "\n"


class Clock:
    """Charges time to the phase that was named last.

    On a GPU it reads the device's own clock, by events in the stream that computes: work that was handed over
    counts where it is done, and waiting only where the device had nothing to do. Nothing is synchronised but
    when many events have gathered.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = dict.fromkeys([*STEP, *BESIDE], 0.0)
        self._cuda = device if device.type == "cuda" else None
        self._phase, self._since = "keep", time.perf_counter()
        self._events: list[tuple[str, torch.cuda.Event]] = []
        self.mark("keep")

    def mark(self, phase: str) -> None:
        """Say that from now on it is ``phase``."""
        if self._cuda is None:
            now = time.perf_counter()
            self.seconds[self._phase] += now - self._since
            self._phase, self._since = phase, now
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._cuda))
        self._events.append((phase, event))
        if len(self._events) >= EVENTS:
            self._read()

    def _read(self) -> None:
        self._events[-1][1].synchronize()
        for (phase, begin), (_, end) in zip(self._events, self._events[1:], strict=False):
            self.seconds[phase] += begin.elapsed_time(end) / 1e3
        del self._events[:-1]

    def stop(self, steps: int) -> Profile:
        """Return what was found in so many training steps."""
        self.mark("keep")
        if self._cuda is not None:
            self._read()
        return Profile(steps, dict(self.seconds))


@contextmanager
def profiled(engine: GradientEngine, device: torch.device) -> Iterator[Clock]:
    """Give a clock that hears what the engine does: forward, gradients, and weighting, which is the rest.

    Autograd and the method are listened to from outside, so that a run without a profile pays nothing.
    """
    clock = Clock(device)

    def listened(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            clock.mark("gradients")
            found = function(*args, **options)
            clock.mark("weighting")
            return found

        return call

    plain = {name: getattr(torch.autograd, name) for name in ("backward", "grad")}
    silent, engine.mark = engine.mark, clock.mark
    asked = engine.weighting.register_forward_pre_hook(lambda *_: clock.mark("weighting"))
    try:
        for name, function in plain.items():
            setattr(torch.autograd, name, listened(function))
        yield clock
    finally:
        for name, function in plain.items():
            setattr(torch.autograd, name, function)
        asked.remove()
        engine.mark = silent
