"""A board as Markdown, CSV and JSON. The same board gives the same bytes, always."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from mtlbench.config import Protocol, RunConfig, flag_name
from mtlbench.leaderboard.board import Board, Column, Row, Table, spell
from mtlbench.results import Summary

MISSING = "–"


def number(value: float) -> float:
    """Return a figure as files keep it: six significant digits, so that no last bit shows."""
    return float(f"{value:.6g}")


def score(summary: Summary | None) -> str:
    """Write a metric's mean with its interval."""
    if summary is None:
        return MISSING
    half = "" if summary.half_width is None else f" ± {_figure(summary.half_width)}"
    return f"{_figure(summary.mean)}{half}"


def _figure(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def percent(summary: Summary | None) -> str:
    """Write a Δ-MTL with its interval."""
    if summary is None:
        return MISSING
    half = "" if summary.half_width is None else f" ± {summary.half_width:.2f}"
    return f"{summary.mean:+.2f}{half} %"


def seconds(value: float | None) -> str:
    """Write a training time."""
    if value is None:
        return MISSING
    return (
        f"{value:.0f} s"
        if value < 600
        else f"{value / 60:.0f} min"
        if value < 36000
        else f"{value / 3600:.1f} h"
    )


def heading(column: Column) -> str:
    """Name a metric with its direction and unit."""
    unit = "" if column.unit == "1" else f" [{column.unit}]"
    return f"{column.metric} {'↑' if column.higher_is_better else '↓'}{unit}"


def verdict(row: Row) -> str:
    """Say how a row stands to the best and to the reference, and no more than was shown."""
    if row.kind == "run" and row.delta is None:
        return row.missing[0].partition(": ")[2] if row.missing else ""
    words = []
    if row.best:
        words.append("best")
    elif row.tied:
        words.append("tied with best")
    elif row.kind == "run" and row.delta is not None and row.tied is None:
        words.append("too few seeds to tell")
    if row.versus is not None and row.versus.p is not None:
        shown = "<0.001" if row.versus.p < 0.001 else f"{row.versus.p:.3f}"
        words.append(f"p = {shown}" if shown[0] != "<" else f"p {shown}")
    return ", ".join(words)


def count(row: Row) -> str:
    """Write the number of seeds that count, of those that were run."""
    if row.kind == "published":
        return "published"
    known = row.delta.n if row.delta else 0
    return str(known) if known == len(row.seeds) else f"{known} of {len(row.seeds)}"


def facts(table: Table) -> str:
    """Say under which protocol a table's runs were trained."""
    protocol = table.protocol
    parts = [
        f"{protocol['epochs']} epochs",
        f"batch {protocol['batch_size']}",
        f"{protocol['optimizer']}, learning rate {protocol['lr']:g}",
    ]
    defaults = {f.name: f.default for f in fields(Protocol)} | {"shards": 1}
    shown = ("epochs", "batch_size", "optimizer", "lr", "selection")
    parts += [
        f"{flag_name(name)} {spell(value)}"
        for name, value in protocol.items()
        if name not in shown and value != defaults.get(name)
    ]
    return " · ".join(parts)


def command(row: Row, table: Table) -> str:
    """Return the command that makes a row's runs again."""
    spec = dict(row.spec)
    if row.kind == "baseline":
        spec["tasks"] = sorted({r.values["spec"]["tasks"][0] for seed in row.seeds for r in seed.records})
    found = settings(spec, table.protocol) | {"seeds": [seed.seed for seed in row.seeds]}
    return "mtlbench run " + " ".join(
        f"--{'' if value else 'no-'}{flag_name(name)}"
        if isinstance(value, bool)
        else f"--{flag_name(name)} {shlex.quote(spell(value))}"
        for name, value in found.items()
    )


def settings(spec: Mapping[str, Any], protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of ``mtlbench run``, but for the seed, that lead to a record's spec and protocol.

    Those that are as the command has them by default are left out.
    """
    defaults = {f.name: f.default for f in fields(RunConfig)}
    asked = {_FLAGS.get(name, name): value for name, value in spec.items() if value not in (None, {})}
    asked |= {f.name: protocol[f.name] for f in fields(Protocol) if f.name in protocol}
    return {k: v for k, v in asked.items() if k in defaults and k != "seed" and v != defaults[k]}


_FLAGS = {"architecture": "arch", "weighting": "weight", "dataset": "data", "heads": "head"}
"""What the command calls the parts of a record's spec, where it is another word."""


def markdown(board: Board) -> str:
    """Return the board as Markdown tables."""
    lines = ["# Leaderboard", ""]
    for table in board.tables:
        lines += [
            f"## {table.title}: {', '.join(table.tasks)}",
            "",
            f"{facts(table)} · key `{table.key}`",
            "",
        ]
        head = [
            "#",
            "method",
            "Δ-MTL ↑",
            "seeds",
            "against best" + (f"; {table.reference}" if table.reference else ""),
        ]
        head += ["mean rank", *(f"{c.task} {heading(c)}" for c in table.columns), "training"]
        lines += ["| " + " | ".join(head) + " |", "|" + "|".join([" --- "] * len(head)) + "|"]
        for place, row in enumerate(table.rows, 1):
            cells = [str(place), row.label, percent(row.delta), count(row), verdict(row)]
            cells += ["" if row.rank is None else f"{row.rank:.2f}"]
            cells += [score(row.cells.get(c.key)) for c in table.columns]
            cells += [seconds(row.seconds)]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        notes = [f"- {row.label}, {why}" for row in table.rows for why in row.missing]
        notes += [f"- {row.label}: {row.source}" for row in table.rows if row.source]
        lines += ["", *notes, ""] if notes else [""]
    lines += [LEGEND, "", f"Made from {board.records} records, digest `{board.digest}`."]
    return "\n".join(lines) + "\n"


LEGEND = (
    "Δ-MTL is the mean over tasks of the mean relative gain over single-task training of the same seeds; ± is"
    " the half-width of a Student-t 95 % interval over seeds. p: paired t test against the reference row,"
    " Holm-corrected over the table."
)


CSV_COLUMNS = (
    "table", "dataset", "method", "kind", "task", "metric", "unit", "higher_is_better", "auxiliary", "mean",
    "half_width_95", "n",
)  # fmt: skip


def table_csv(board: Board) -> str:
    """Return every cell of the board as one line of CSV (RFC 4180)."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow(CSV_COLUMNS)
    for table in board.tables:
        for row in table.rows:
            start = [table.name, table.dataset, row.label, row.kind]
            if row.delta is not None:
                writer.writerow([*start, "", "delta_mtl", "%", True, False, *_summary(row.delta)])
            for column in table.columns:
                found = row.cells.get(column.key)
                if found is not None:
                    what = [
                        column.task,
                        column.metric,
                        column.unit,
                        column.higher_is_better,
                        column.auxiliary,
                    ]
                    writer.writerow([*start, *what, *_summary(found)])
    return file.getvalue()


def _summary(found: Summary) -> list[Any]:
    return [number(found.mean), "" if found.half_width is None else number(found.half_width), found.n]


def board_json(board: Board) -> str:
    """Return the board as JSON: everything that the page shows, for other programs."""
    content = {
        "digest": board.digest,
        "records": board.records,
        "tables": [_table(table) for table in board.tables],
        "ranking": None
        if board.ranking is None
        else {
            "methods": dict(zip(board.ranking.methods, map(number, board.ranking.ranks), strict=True)),
            "datasets": list(board.ranking.datasets),
            "friedman_p": number(board.ranking.friedman),
        },
    }
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _table(table: Table) -> dict[str, Any]:
    return {
        "name": table.name,
        "dataset": table.dataset,
        "title": table.title,
        "comparability": table.key,
        "tasks": list(table.tasks),
        "protocol": dict(table.protocol),
        "reference": table.reference,
        "rows": [_row(row, table) for row in table.rows],
    }


def _row(row: Row, table: Table) -> dict[str, Any]:
    def summary(found: Summary | None) -> Mapping[str, Any] | None:
        if found is None:
            return None
        half = None if found.half_width is None else number(found.half_width)
        return {"mean": number(found.mean), "half_width": half, "n": found.n}

    return {
        "label": row.label,
        "kind": row.kind,
        "delta_mtl": summary(row.delta),
        "delta_mtl_by_seed": {str(seed): number(value) for seed, value in sorted(row.deltas.items())},
        "metrics": {
            task: {c.metric: summary(row.cells.get(c.key)) for c in table.columns if c.task == task}
            for task in table.tasks
        },
        "missing": list(row.missing),
        "best": row.best,
        "tied_with_best": row.tied,
        "p_holm": None if row.versus is None or row.versus.p is None else number(row.versus.p),
        "mean_rank": None if row.rank is None else number(row.rank),
        "pareto_front": row.front,
        "training_seconds": None if row.seconds is None else number(row.seconds),
        "parameters": row.parameters,
        "source": row.source,
        "runs": {str(seed.seed): [record.run_id for record in seed.records] for seed in row.seeds},
        "command": "" if row.kind == "published" else command(row, table),
    }
