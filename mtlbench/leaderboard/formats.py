"""A board as Markdown, CSV and JSON. The same board gives the same bytes, always."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from mtlbench.config import Protocol, RunConfig, flag_name
from mtlbench.leaderboard.board import Board, Column, Row, Table, spell, uncollected
from mtlbench.results import Summary
from mtlbench.results.statistics import LEVEL, Ranking, Versus

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


def standing(row: Row) -> str:
    """Say how a row stands to the best one, and no more than was shown; of one without Δ-MTL, why."""
    if row.kind != "run":
        return row.kind
    if row.delta is None:
        return row.missing[0].split(": ")[1] if row.missing else ""  # the notes tell the whole reason
    if row.best:
        return "best"
    return "too few seeds" if row.tied is None else "tied with best" if row.tied else "below best"


def p_value(test: Versus | None) -> str:
    """Write a corrected p; nothing where none was computed."""
    if test is None or test.p is None:
        return ""
    return "<0.001" if test.p < 0.001 else f"{test.p:.3f}"


def rank(row: Row) -> str:
    """Write a mean rank; nothing where the row has gaps."""
    return "" if row.rank is None else f"{row.rank:.2f}"


def count(row: Row) -> str:
    """Write the number of seeds that count, of those that were run."""
    if row.kind == "published":
        return ""
    known = row.delta.n if row.delta else 0
    return str(known) if known == len(row.seeds) else f"{known} of {len(row.seeds)}"


def takeaway(table: Table) -> str:
    """Say in words what a table shows: its best row, what is tied with it, and whether it gained anything."""
    runs = [row for row in table.rows if row.kind == "run" and row.delta is not None]
    best = next((row for row in runs if row.best), None)
    if best is None or best.delta is None:
        return "No run of this table has a Δ-MTL."
    words = f"{best.label} is best with a Δ-MTL of {percent(best.delta)}"
    if best.delta.half_width is None:
        return f"{words}, for one seed: whether that is chance can't be told."
    if abs(best.delta.mean) <= best.delta.half_width:
        words += ", an interval that holds zero"
    tied, others = sum(row.tied is True for row in runs), len(runs) - 1
    if not others:
        return f"{words}."
    if tied == others:
        return f"{words}. {'All other rows are' if others > 1 else 'The other row is'} tied with it."
    return (
        f"{words}. {tied or 'None'} of the other {others} rows {'is' if tied == 1 else 'are'} tied with it."
    )


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
    defaults = _defaults()
    asked = {_FLAGS.get(name, name): value for name, value in spec.items() if value not in (None, {})}
    asked |= {name: protocol[name] for name in _PROTOCOL if name in protocol}
    return {k: v for k, v in asked.items() if k in defaults and k != "seed" and v != defaults[k]}


_PROTOCOL = tuple(f.name for f in fields(Protocol))


@cache
def _defaults() -> Mapping[str, Any]:
    return {f.name: f.default for f in fields(RunConfig)}


_FLAGS = {"architecture": "arch", "weighting": "weight", "dataset": "data", "heads": "head"}
"""What the command calls the parts of a record's spec, where it is another word."""


def markdown(board: Board) -> str:
    """Return the board as Markdown tables."""
    lines = ["# Leaderboard", ""]
    for table in board.tables:
        lines += [
            f"## {table.title}: {', '.join(table.tasks)}",
            "",
            takeaway(table),
            "",
            f"{facts(table)} · key `{table.key}`",
            "",
        ]
        tested = [f"p vs {table.reference}"] if table.reference else []
        head = ["#", "method", "Δ-MTL ↑", "seeds", "standing", *tested, "mean rank"]
        head += [*(f"{c.task} {heading(c)}" for c in table.columns), "training"]
        sides = ["---:", "---", "---:", "---:", "---", *["---:"] * (len(head) - 5)]
        lines += ["| " + " | ".join(head) + " |", "| " + " | ".join(sides) + " |"]
        for place, row in enumerate(table.rows, 1):
            cells = [str(place), row.label, percent(row.delta), count(row), standing(row)]
            cells += [p_value(row.versus)] if tested else []
            cells += [rank(row), *(score(row.cells.get(c.key)) for c in table.columns), seconds(row.seconds)]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        notes = [f"- {row.label}, {why}" for row in table.rows for why in row.missing]
        notes += [f"- {row.label}: {row.source}" for row in table.rows if row.source]
        lines += ["", *notes, ""] if notes else [""]
    if board.ranking is not None:
        lines += [
            "## Over all datasets",
            "",
            ranks_said(board.ranking),
            "",
            "| method | mean rank |",
            "| --- | --- |",
        ]
        ranked = zip(board.ranking.methods, board.ranking.ranks, strict=True)
        lines += [*(f"| {method} | {rank:.2f} |" for method, rank in ranked), ""]
    lines += [LEGEND, "", f"Made from {board.records} records, digest `{board.digest}`."]
    return "\n".join(lines) + "\n"


def ranks_said(ranking: Ranking) -> str:
    """Say what was ranked, and which ranks differ."""
    p = "p < 0.001" if ranking.friedman < 0.001 else f"p = {ranking.friedman:.3f}"
    words = (
        f"Mean ranks by Δ-MTL of the {len(ranking.methods)} methods that all {len(ranking.datasets)} datasets"
        f" have (1 is best). Friedman's test: {p}"
    )
    if ranking.friedman >= LEVEL:
        return f"{words}, so no difference between any of them was shown."
    return (
        f"{words}. By Nemenyi's test two methods differ where their mean ranks are at least"
        f" {ranking.critical:.2f} apart."
    )


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


@uncollected()
def board_json(board: Board) -> str:
    """Return the board as JSON, a line for each row: everything that the page shows, for other programs."""
    ranked = board.ranking
    content = {
        "digest": board.digest,
        "records": board.records,
        "ranking": None
        if ranked is None
        else {
            "methods": dict(zip(ranked.methods, map(number, ranked.ranks), strict=True)),
            "datasets": list(ranked.datasets),
            "friedman_p": number(ranked.friedman),
            "critical_difference": number(ranked.critical),
        },
    }
    tables = []
    for table in board.tables:
        rows = ",\n".join(_json(_row(row, table)) for row in table.rows)
        tables.append(f'{_json(_table(table))[:-1]},"rows":[\n{rows}\n]}}')
    return f'{_json(content)[:-1]},"tables":[\n' + ",\n".join(tables) + "\n]}\n"


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _table(table: Table) -> dict[str, Any]:
    return {
        "name": table.name,
        "dataset": table.dataset,
        "title": table.title,
        "comparability": table.key,
        "tasks": list(table.tasks),
        "protocol": dict(table.protocol),
        "reference": table.reference,
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
