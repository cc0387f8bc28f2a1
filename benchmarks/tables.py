"""What the benchmarks found: tables in Markdown, and ratios that are kept as a reference.

A ratio says by how many times ours is ahead, so that more is better everywhere; its key names what was timed
and against what.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

TOLERANCE = 0.2
"""By what share a ratio may fall behind its reference."""


def fallen_behind(
    found: Mapping[str, float], reference: Mapping[str, float], tolerance: float = TOLERANCE
) -> list[str]:
    """Return a line for every ratio of ``found`` that is below its reference by more than ``tolerance``.

    A ratio without a reference is not judged, nor is a reference that was not measured this time. A ratio
    that is not a number has fallen behind.
    """
    lines = []
    for key in sorted(found.keys() & reference.keys()):
        ratio, before = found[key], reference[key]
        if not ratio >= before * (1 - tolerance):
            lines.append(f"{key}: {ratio:.3g}, was {before:.3g} ({ratio / before - 1:+.0%})")
    return lines


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of positive values, of which there is one at least."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def figure(value: float) -> str:
    """Return a ratio in as many digits as it is worth."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


class Tables:
    """Collects what a session of benchmarks finds."""

    def __init__(self, quick: bool = False) -> None:
        self.quick = quick
        self.ratios: dict[str, float] = {}
        self._written: dict[str, float] = {}
        self.skipped: dict[str, None] = {}
        self._tables: dict[str, dict[str, dict[str, str]]] = {}
        self._last: set[str] = set()
        self._goals: dict[str, tuple[str, str, str, str]] = {}

    def cell(self, table: str, row: str, column: str, text: str) -> None:
        """Write a cell; tables, rows and columns stand in the order in which they first came."""
        self._tables.setdefault(table, {}).setdefault(row, {})[column] = text

    def ratio(self, table: str, row: str, column: str, value: float, *, judged: bool = True) -> None:
        """Write a ratio, and keep it for the reference if it is to be judged; more is better."""
        key = ", ".join((table, row, column))
        self._written[key] = value
        if judged:
            self.keep(key, value)
        self.cell(table, row, column, figure(value))

    def keep(self, key: str, value: float) -> None:
        """Keep a ratio for the reference alone; more is better."""
        self.ratios[key] = value

    def mean(
        self,
        table: str,
        row: str,
        columns: Iterable[str],
        name: str,
        goal: float | None = None,
        allowed: float | None = None,
    ) -> float | None:
        """Write and return the geometric mean of the row's ratios in those of ``columns`` that are there.

        It stands at the row's end. goal: what it should be at least. allowed: what it could be at most.
        """
        keys = [", ".join((table, row, column)) for column in columns]
        found = [self._written[key] for key in keys if key in self._written]
        if not found:
            return None
        mean = geometric_mean(found)
        self._last.add(name)
        self.cell(table, row, name, f"**{figure(mean)}**")
        if goal is not None:
            self.goal(f"{table}, {row}, {name}", goal, mean, allowed=allowed)
        return mean

    def goal(
        self, what: str, goal: float, found: float, *, most: bool = False, allowed: float | None = None
    ) -> None:
        """Say what a figure should be at least, or at most, beside what it is.

        allowed: what it could be at most, where that is known.
        """
        met = found <= goal if most else found >= goal
        limit = f"{'at most' if most else 'at least'} {goal:g}"
        reach = "" if allowed is None else figure(allowed)
        verdict = "met" if met else "**missed**"
        self._goals[what] = limit, f"{found:.3f}" if most else figure(found), reach, verdict

    def skip(self, what: str) -> None:
        """Remember what was not measured, and why."""
        self.skipped[what] = None

    def markdown(self) -> str:
        """Return all tables, under the machine they were measured on, and what was skipped."""
        blocks = [f"Measured on {machine()}."]
        if self.quick:
            blocks.append("**From a short run on a busy machine: the figures are rough.**")
        for title, rows in self._tables.items():
            columns = list(dict.fromkeys(column for row in rows.values() for column in row))
            columns.sort(key=self._last.__contains__)
            lines = [f"### {title}", "", "| | " + " | ".join(columns) + " |"]
            lines.append("| --- |" + " ---: |" * len(columns))
            for name, row in rows.items():
                lines.append(f"| {name} | " + " | ".join(row.get(column, "") for column in columns) + " |")
            blocks.append("\n".join(lines))
        if self._goals and not self.quick:
            met = sum(verdict == "met" for *_, verdict in self._goals.values())
            lines = [f"### Goals: {met} of {len(self._goals)} met", ""]
            lines += ["| | goal | found | memory allows | |", "| --- | ---: | ---: | ---: | --- |"]
            lines += [f"| {what} | {' | '.join(cells)} |" for what, cells in self._goals.items()]
            blocks.append("\n".join(lines))
        if self.skipped:
            blocks.append("### Not measured\n\n" + "\n".join(f"- {what}" for what in sorted(self.skipped)))
        return "\n\n".join(blocks) + "\n"

    def write(self, page: Path) -> None:
        """Write the page that docs include."""
        page.write_text(self.markdown(), encoding="utf-8")

    def refer(self, reference: Path, look: Path | None = None) -> None:
        """Write the ratios that `make bench-check` compares with: short runs with short runs.

        look: what `remember` wrote: then the lesser of two ratios counts, which no lucky moment has made.
        """
        before = json.loads(look.read_text(encoding="utf-8")) if look else {}
        lesser = {key: min(ratio, before.get(key, ratio)) for key, ratio in self.ratios.items()}
        ratios = {key: float(f"{value:.4g}") for key, value in sorted(lesser.items())}
        kept = {"machine": machine(), "quick": self.quick, "ratios": ratios}
        reference.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")

    def remember(self, look: Path) -> None:
        """Write the ratios down for another look."""
        look.parent.mkdir(exist_ok=True)
        look.write_text(json.dumps(self.ratios), encoding="utf-8")

    def judge(self, reference: Path, look: Path | None = None) -> str:
        """Return what to print after a check: empty where no ratio fell behind.

        look: what `remember` wrote: then the better of two ratios counts, since a short run can catch a bad
        moment of the machine.
        """
        if not reference.exists():
            return f"there is no {reference.name} to compare with; make bench writes it"
        if not self.ratios:
            return "nothing was measured"
        kept = json.loads(reference.read_text(encoding="utf-8"))
        before = json.loads(look.read_text(encoding="utf-8")) if look else {}
        better = {key: max(ratio, before.get(key, ratio)) for key, ratio in self.ratios.items()}
        behind = fallen_behind(better, kept["ratios"])
        if not behind:
            return ""
        heading = f"{len(behind)} of {len(self.ratios)} ratios fell behind by more than {TOLERANCE:.0%}:"
        return "\n".join([heading, *behind, f"the reference was measured on {kept['machine']}"])


def machine() -> str:
    """Return what the machine is, in general terms: cores, family of the processor, versions."""
    import torch

    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        named = re.search(r"^model name\s*:\s*(.*)$", information.read_text(), re.MULTILINE)
        model = re.sub(r"\(R\)|\(TM\)|@.*|\b\d\S*-Core\b|Processor", "", named[1]) if named else model
    cores, threads = os.cpu_count(), torch.get_num_threads()
    return (
        f"{cores} cores of {' '.join(model.split())}, torch {torch.__version__} with {threads} threads,"
        f" Python {platform.python_version()}"
    )
