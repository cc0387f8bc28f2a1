"""What a person sees while runs go on: bars on a terminal, plain lines elsewhere, nothing with --quiet.

Everything here goes to standard error; standard output holds the result alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mtlbench.terminal import shown
from mtlbench.training.report import Silence

MISSING = "–"
WIDE = 120
"""Columns from which on there is room for the losses beside the bar."""


def _losses(losses: Mapping[str, float | None]) -> str:
    return "  ".join(
        f"{name} {MISSING if loss is None else format(loss, '.4f')}" for name, loss in losses.items()
    )


class Quiet(Silence):
    """Says nothing."""

    def notice(self, text: str) -> None:
        """Say nothing."""


class Lines(Quiet):
    """One line for each run and for each epoch, for logs."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.label, self.epochs, self.began = "", 0, 0.0

    def notice(self, text: str) -> None:
        """Print the line."""
        self.console.print(text, soft_wrap=True)

    def started(self, label: str, epochs: int, steps: int, done: int) -> None:
        """Name the run."""
        self.label, self.epochs, self.began = label, epochs, time.perf_counter()
        resumed = f", going on after epoch {done}" if done else ""
        self.console.print(f"{label}: {epochs} epochs of {steps} steps{resumed}", soft_wrap=True)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Print the epoch's validation losses."""
        losses = _losses({task: found["loss"] for task, found in row["val"].items()})
        self.console.print(
            f"{self.label}: epoch {row['epoch']}/{self.epochs}  validation  {losses}", soft_wrap=True
        )

    def finished(self, status: str, reason: str | None) -> None:
        """Say how it ended."""
        ending = status if reason is None else f"{status}: {reason}"
        self.console.print(
            f"{self.label}: {ending} after {time.perf_counter() - self.began:.1f} s", soft_wrap=True
        )


class Bars(Quiet):
    """A bar for each run, with the running losses."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = [
            TextColumn(" running  {task.description}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        ]
        if console.width >= WIDE:
            columns.append(TextColumn("{task.fields[losses]}", style="dim", markup=False))
        self.progress = Progress(*columns, console=console, refresh_per_second=8)
        self.bar: Any = None
        self.mean: dict[str, float] = {}

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def notice(self, text: str) -> None:
        """Print the line above the bars."""
        self.progress.console.print(text, style="yellow")

    def started(self, label: str, epochs: int, steps: int, done: int) -> None:
        """Add the run's bar."""
        self.mean = {}
        self.bar = self.progress.add_task(label, total=epochs * steps, completed=done * steps, losses="")

    def stepped(self, losses: Mapping[str, float]) -> None:
        """Advance the bar; the losses shown are running means."""
        for name, loss in losses.items():
            if math.isfinite(loss):
                self.mean[name] = 0.95 * self.mean.get(name, loss) + 0.05 * loss
        self.progress.update(self.bar, advance=1, losses=_losses(self.mean))

    def finished(self, status: str, reason: str | None) -> None:
        """Replace the bar by a line, so that only what is running moves, however many runs there are."""
        task = self.progress.tasks[0]
        early = ", stopped early" if status == "ok" and task.completed < (task.total or 0) else ""
        word = "done" if status == "ok" else status
        self.progress.remove_task(self.bar)
        line = Text.assemble((f"{word:>8}", "green" if status == "ok" else "red"), f"  {task.description}")
        line.append(f"  {task.elapsed or 0:.0f} s{early}", style="dim")
        self.progress.console.print(line if reason is None else line.append(f"  {reason}", style="red"))


def watcher(quiet: bool) -> AbstractContextManager[Quiet]:
    """Give the watcher that suits standard error."""
    return shown(Quiet() if quiet else None, Lines, Bars)
