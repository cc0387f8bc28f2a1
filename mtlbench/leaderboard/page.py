"""A board as one self-contained HTML page: no request leaves it, and it is complete without JavaScript."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from mtlbench.leaderboard import formats
from mtlbench.leaderboard.board import Board, Row, Seed, Table, uncollected
from mtlbench.leaderboard.drawing import Point, bar, critical_difference, curves, ends, pareto, ruler
from mtlbench.results.statistics import BLOCKS, LEVEL

MOST_POINTS = 400
"""A plot of more points than this shows nothing; then only the best are drawn, and that is said."""


MOST_RANKED = 40
"""So many methods have room in a critical-difference diagram; of more, the ranks are only listed."""


@uncollected()
def page(board: Board) -> str:
    """Return the page. The same board gives the same bytes."""
    css, js = _asset("page.css"), _asset("page.js")
    policy = f"default-src 'none'; script-src '{_hash(js)}'; style-src '{_hash(css)}'"
    policy += "; base-uri 'none'; form-action 'none'"
    datasets = sorted({table.dataset for table in board.tables})
    return str(
        _template().render(
            css=Markup(css),
            js=Markup(js),
            policy=policy,
            legend=formats.LEGEND,
            tables=[_table(table) for table in board.tables],
            ranking=_ranking(board),
            over=f"Ranks over datasets are shown from {BLOCKS} datasets on (here: {len(datasets)})."
            if datasets
            else "",
            records=board.records,
            digest=board.digest,
        )
    )


def _asset(name: str) -> str:
    return (files("mtlbench.leaderboard") / "assets" / name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    return environment.from_string(_asset("page.html"))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _table(table: Table) -> dict[str, Any]:
    scale = ends([row.delta.mean for row in table.rows if row.delta])
    ids = [f"run-{table.name}-{place}" for place in range(len(table.rows))]
    heads = [
        _head("method", "ascending", kind="text"),
        _head("Δ-MTL ↑ [%]", "descending"),
        _head("standing", "ascending", kind="text"),
        *([_head(f"p vs {table.reference}", "ascending")] if table.reference else []),
        _head("seeds", "descending"),
        _head("mean rank ↓", "ascending"),
        *(
            _head(formats.heading(c), "descending" if c.higher_is_better else "ascending", c.task)
            for c in table.columns
        ),
        _head("training", "ascending"),
    ]
    plot = _plot(table, ids)
    return {
        "name": table.name,
        "title": table.title,
        "tasks": ", ".join(table.tasks),
        "short": f"{len(table.rows)} rows, {table.protocol['epochs']} epochs",
        "takeaway": formats.takeaway(table),
        "facts": formats.facts(table),
        "key": table.key,
        "reference": table.reference,
        "heads": heads,
        "metric_heads": [(c.task, formats.heading(c)) for c in table.columns],
        "rows": [_row(row, table, scale, run) for row, run in zip(table.rows, ids, strict=True)],
        "scale": ruler(scale),
        "plot": plot,
        "why": ""
        if len(table.devices) <= 1
        else "No plot against training time: the runs were timed on different machines.",
    }


def _head(text: str, first: str, task: str = "", kind: str = "number") -> dict[str, str]:
    return {"text": text, "kind": kind, "first": first, "task": task}


def _plot(table: Table, ids: Sequence[str]) -> dict[str, Any] | None:
    """Return the plot of Δ-MTL against training time; None where there is nothing to compare."""
    points = [
        Point(row.label, row.seconds, row.delta.mean, row.front, run)
        for row, run in zip(table.rows, ids, strict=True)
        if row.delta is not None and row.seconds is not None
    ]
    if len(points) < 2 or len(table.devices) != 1:
        return None
    points.sort(key=lambda point: (not point.front, -point.delta, point.label))
    note = f"Timed on: {table.devices[0]}."
    if len(points) > MOST_POINTS:
        note += f" Only the best {MOST_POINTS} of {len(points)} rows are drawn."
    return {"svg": pareto(points[:MOST_POINTS], f"Δ-MTL against training time, {table.title}"), "note": note}


def _typeset(number: str) -> str:
    return number.replace("-", "\N{MINUS SIGN}")


def _value(value: float | None) -> str:
    return "" if value is None else repr(formats.number(value))


def _row(row: Row, table: Table, scale: tuple[float, float], run: str) -> SimpleNamespace:
    """Return what the page shows of a row; a cell is (value to sort by, text, half-width, class)."""
    delta, standing = row.delta, formats.standing(row)
    cells = [(standing, standing, "", "text best" if row.best else "text")]
    if table.reference:
        p = None if row.versus is None else row.versus.p
        cells.append(
            (_value(p), formats.p_value(row.versus), "", "shown" if p is not None and p < LEVEL else "")
        )
    cells.append((str(delta.n if delta else 0), formats.count(row), "", "minus" if row.missing else ""))
    cells.append((_value(row.rank), formats.rank(row), "", ""))
    for column in table.columns:
        found = row.cells.get(column.key)
        text, _, half = formats.score(found).partition(" ± ")
        cells.append((_value(found.mean if found else None), text, half, ""))
    cells.append((_value(row.seconds), formats.seconds(row.seconds), "", ""))
    mean, _, half = formats.percent(delta).removesuffix(" %").partition(" ± ")
    return SimpleNamespace(  # of which templates get parts faster than of a dictionary
        kind=row.kind,
        label=row.label,
        find=f"{row.label} {row.kind} {standing}".lower(),
        run=run,
        value=_value(delta.mean if delta else None),
        bar=bar(delta, scale) if delta else "",
        sign="" if not delta or not delta.mean else "plus" if delta.mean > 0 else "minus",
        mean=_typeset(mean),
        half=half,
        cells=cells,
        source=row.source,
        seeds=[_seed(seed, table) for seed in row.seeds],
        missing=row.missing,
        charts=_charts(row, table),
        command="" if row.kind == "published" else formats.command(row, table),
    )


def _seed(seed: Seed, table: Table) -> SimpleNamespace:
    scores = [seed.score(column.key) for column in table.columns]
    chosen = [
        str(r.values["selection"]["epoch"]) if r.values["selection"] else formats.MISSING
        for r in seed.records
    ]
    return SimpleNamespace(
        seed=seed.seed,
        delta=formats.MISSING if seed.delta is None else _typeset(f"{seed.delta:+.2f} %"),
        scores=[formats.MISSING if value is None else f"{value:.4f}" for value in scores],
        epoch=", ".join(chosen),
        seconds=formats.seconds(seed.seconds),
        runs=" ".join(record.run_id for record in seed.records),
    )


def _charts(row: Row, table: Table) -> list[dict[str, Any]]:
    """Draw the validation loss of every task over the epochs, one line a seed."""
    charts = []
    for task in table.tasks:
        lines = [
            [epoch["val"][task].get("loss") for epoch in record.values["history"] if task in epoch["val"]]
            for seed in row.seeds
            for record in seed.records
            if task in record.values["spec"]["tasks"]
        ]
        picture = curves(lines, f"Validation loss of {task} over epochs, {row.label}") if lines else ""
        if picture:
            charts.append({"svg": picture, "caption": f"{task}: validation loss"})
    return charts


def _ranking(board: Board) -> dict[str, Any] | None:
    """Return what the page says of the ranks over datasets, with a picture where its lines have room."""
    found = board.ranking
    if found is None:
        return None
    groups = "; ".join(", ".join(found.methods[a : b + 1]) for a, b in found.groups)
    label = f"Mean ranks over {len(found.datasets)} datasets. Not told apart: {groups or 'no two methods'}."
    return {
        "text": formats.ranks_said(found),
        "svg": critical_difference(found, label) if len(found.methods) <= MOST_RANKED else "",
        "rows": [
            {"method": method, "rank": f"{rank:.2f}"}
            for method, rank in zip(found.methods, found.ranks, strict=True)
        ],
    }
