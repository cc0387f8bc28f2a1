"""What a person sees of a sweep: a live table on a terminal, plain lines elsewhere, on standard error."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mtlbench.terminal import shown

if TYPE_CHECKING:  # torch and its seconds, before the first sign of life
    from mtlbench.sweep.grid import Plan
    from mtlbench.sweep.state import State

REFRESH = 0.25
SHOWN = 8
"""Runs that have ended and are still shown; the others are counted."""


class Quiet:
    """Says nothing."""

    def planning(self, label: str) -> None:
        """A combination is being checked."""

    def planned(self, plan: Plan) -> None:
        """All combinations are checked."""

    def notice(self, text: str) -> None:
        """Something that the user should know."""

    def show(self, states: Sequence[State]) -> None:
        """The states may have changed."""


class Lines(Quiet):
    """One line for everything that changes, for logs."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.told: dict[str, str] = {}

    def planned(self, plan: Plan) -> None:
        """Say how many runs there are, and what was left out."""
        self.console.print(_summary(plan), soft_wrap=True)
        for title, why in plan.refused:
            self.notice(f"left out: {title}: {why}")

    def notice(self, text: str) -> None:
        """Print the line."""
        self.console.print(text, soft_wrap=True)

    def show(self, states: Sequence[State]) -> None:
        """Print what changed."""
        ended = sum(state.state in ("done", "failed") for state in states)
        for state in states:
            word = "training" if state.state == "running" else state.state
            if self.told.get(state.job.run_id, "queued") != word and not state.job.cached:
                reason = f": {state.reason}" if state.reason else ""
                self.notice(
                    f"[{ended}/{len(states)}] {word}  {state.job.run.label}{reason}{_gain(state, states)}"
                )
            self.told[state.job.run_id] = word


class Board(Lines):
    """A live table of what runs, what has just ended, and what is to come."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.live = Live(console=console, refresh_per_second=4, transient=True)
        self.last = 0.0

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def planning(self, label: str) -> None:
        """Show what is being checked."""
        self.live.update(Text(f" checking  {label}", style="dim"))

    def show(self, states: Sequence[State]) -> None:
        """Draw the table anew, at most a few times a second."""
        if time.monotonic() - self.last > REFRESH:
            self.last = time.monotonic()
            self.live.update(draw(states))


def draw(states: Sequence[State]) -> Group:
    """Return the table: failed and latest runs, those that run, and how many wait."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for name in ("state", "run", "bar", "detail"):
        table.add_column(name, no_wrap=name != "detail")
    ended = [s for s in states if s.state in ("done", "failed") and not s.job.cached]
    for state in ended[-SHOWN:]:
        good = state.state == "done"
        detail = Text(
            _gain(state, states).strip(" ,") if good else state.reason or "", style="" if good else "red"
        )
        table.add_row(Text(state.state, style="green" if good else "red"), state.job.run.label, "", detail)
    for state in states:
        if state.state == "running":
            bar = ProgressBar(total=max(state.total, 1), completed=state.done, width=20)
            left = state.remaining
            detail = Text(f"epoch {state.epoch}" if state.epoch else "starting", style="dim")
            detail.append("" if left is None else f", {_duration(left)} to go")
            table.add_row(Text("running", style="cyan"), state.job.run.label, bar, detail)
    counts = {word: sum(s.state == word for s in states) for word in ("done", "running", "queued", "failed")}
    line = " · ".join(f"{count} {word}" for word, count in counts.items() if count)
    return Group(table, Text(f" {line}", style="dim"))


def _gain(state: State, states: Sequence[State]) -> str:
    """Return a run's Δ-MTL as soon as its baselines are there."""
    from mtlbench.results import compare

    if state.record is None or state.record.status != "ok" or state.job.baseline:
        return ""
    by_id = {s.job.run_id: s.record for s in states if s.record is not None}
    wanted = state.record.values["baselines"]
    known = {task: by_id[name] for task, name in wanted.items() if name in by_id}
    delta = compare(state.record, known).delta if len(known) == len(wanted) else None
    return "" if delta is None else f", Δ-MTL {delta:+.2f} %"


def _summary(plan: Plan) -> str:
    cached = sum(job.cached for job in plan.jobs)
    singles = sum(job.baseline for job in plan.jobs)
    there = f", {cached} of them there already" if cached else ""
    return f"{len(plan.jobs)} runs ({singles} single-task baselines){there}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes}:{rest:02d}"


def view(quiet: bool) -> AbstractContextManager[Quiet]:
    """Give the view that suits standard error."""
    return shown(Quiet() if quiet else None, Lines, Board)
