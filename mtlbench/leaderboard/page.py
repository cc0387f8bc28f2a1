"""A board as one self-contained HTML page: no request leaves it, and it is complete without JavaScript."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from mtlbench.leaderboard import formats
from mtlbench.leaderboard.board import Board, Row, Seed, Table
from mtlbench.leaderboard.drawing import Point, bar, curves, pareto
from mtlbench.results.statistics import BLOCKS, LEVEL

MOST_POINTS = 400
"""A plot of more points than this shows nothing; then only the best are drawn, and that is said."""


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
    spans = [abs(row.delta.mean) for row in table.rows if row.delta]
    scale = max([*spans, 1e-9]) * 1.4
    ids = {id(row): f"run-{table.name}-{place}" for place, row in enumerate(table.rows)}
    heads = [
        {"text": "method", "kind": "text", "first": "ascending", "name": True, "task": "", "sorted": False},
        {
            "text": "Δ-MTL ↑",
            "kind": "number",
            "first": "descending",
            "name": False,
            "task": "",
            "sorted": True,
        },
        _head("seeds", "descending"),
        _head("standing", "ascending", kind="text"),
        _head("mean rank ↓", "ascending"),
        *(
            _head(formats.heading(c), "descending" if c.higher_is_better else "ascending", c.task)
            for c in table.columns
        ),
        _head("training", "ascending"),
    ]
    drawn = [row for row in table.rows if row.delta is not None and row.seconds is not None]
    one_machine = len(table.devices) <= 1
    many = len(drawn) > MOST_POINTS
    drawn.sort(key=lambda row: (not row.front, -(row.delta.mean if row.delta else 0.0), row.label))
    points = [
        Point(row.label, row.seconds or 0.0, row.delta.mean if row.delta else 0.0, row.front, ids[id(row)])
        for row in drawn[:MOST_POINTS]
    ]
    why = ""
    if not one_machine:
        why = (
            "No plot against training time: the runs were timed on different machines, which do not compare."
        )
    return {
        "name": table.name,
        "title": table.title,
        "tasks": ", ".join(table.tasks),
        "facts": formats.facts(table),
        "key": table.key,
        "reference": table.reference,
        "heads": heads,
        "metric_heads": [f"{c.task} {formats.heading(c)}" for c in table.columns],
        "rows": [_row(row, table, scale, ids[id(row)]) for row in table.rows],
        "pareto": pareto(points, f"Δ-MTL against training time, {table.title}")
        if len(points) > 1 and one_machine
        else "",
        "device": (f"Timed on: {table.devices[0]}." if table.devices else "")
        + (f" Only the best {MOST_POINTS} of {len(drawn)} rows are drawn." if many else ""),
        "why": why,
    }


def _head(text: str, first: str, task: str = "", kind: str = "number") -> dict[str, Any]:
    return {"text": text, "kind": kind, "first": first, "name": False, "task": task, "sorted": False}


def _value(value: float | None) -> str:
    return "" if value is None else repr(formats.number(value))


def _row(row: Row, table: Table, scale: float, run: str) -> dict[str, Any]:
    cells = [
        {"value": str(row.delta.n if row.delta else 0), "text": formats.count(row), "half": "", "kind": ""},
        {"value": formats.verdict(row), "text": formats.verdict(row), "half": "", "kind": "text"},
        {
            "value": _value(row.rank),
            "text": "" if row.rank is None else f"{row.rank:.2f}",
            "half": "",
            "kind": "",
        },
    ]
    for column in table.columns:
        found = row.cells.get(column.key)
        text, _, half = formats.score(found).partition(" ± ")
        cells.append({"value": _value(found.mean if found else None), "text": text, "half": half, "kind": ""})
    cells.append({"value": _value(row.seconds), "text": formats.seconds(row.seconds), "half": "", "kind": ""})
    tags = []
    if row.best:
        tags.append({"text": "best", "kind": "best"})
    if row.missing and row.kind != "published":
        tags.append({"text": f"{len(row.missing)} without Δ-MTL", "kind": ""})
    if row.kind == "published":
        tags.append({"text": "published", "kind": ""})
    delta = row.delta
    return {
        "kind": row.kind,
        "label": row.label,
        "find": f"{row.label} {row.kind} {formats.verdict(row)}".lower(),
        "run": run,
        "tags": tags,
        "delta": _value(delta.mean if delta else None),
        "bar": bar(delta, scale) if delta else "",
        "sign": "" if not delta or not delta.mean else "plus" if delta.mean > 0 else "minus",
        "mean": f"{delta.mean:+.2f} %" if delta else "",
        "half": f"{delta.half_width:.2f}" if delta and delta.half_width is not None else "",
        "cells": cells,
        "source": row.source,
        "seeds": [_seed(seed, table) for seed in row.seeds],
        "missing": row.missing,
        "charts": _charts(row, table),
        "command": "" if row.kind == "published" else formats.command(row, table),
    }


def _seed(seed: Seed, table: Table) -> dict[str, Any]:
    scores = [seed.score(column.key) for column in table.columns]
    chosen = [
        str(r.values["selection"]["epoch"]) if r.values["selection"] else formats.MISSING
        for r in seed.records
    ]
    return {
        "seed": seed.seed,
        "delta": formats.MISSING if seed.delta is None else f"{seed.delta:+.2f} %",
        "scores": [formats.MISSING if value is None else f"{value:.4f}" for value in scores],
        "epoch": ", ".join(chosen),
        "seconds": formats.seconds(seed.seconds),
        "runs": " ".join(record.run_id for record in seed.records),
    }


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
    """Say which methods the ranks over datasets tell apart."""
    found = board.ranking
    if found is None:
        return None
    order = sorted(range(len(found.methods)), key=lambda i: (found.ranks[i], found.methods[i]))
    lines = "; ".join(f"{found.methods[i]} {found.ranks[i]:.2f}" for i in order)
    apart = [
        f"{found.methods[a]} and {found.methods[b]}"
        for place, a in enumerate(order)
        for b in order[place + 1 :]
        if found.nemenyi[a, b] < LEVEL
    ]
    text = f"Mean ranks over {len(found.datasets)} datasets (Friedman p = {found.friedman:.2g}): {lines}."
    text += (
        f" Told apart by Nemenyi's test: {', '.join(apart)}."
        if apart
        else " Nemenyi's test tells none apart."
    )
    return {"text": text, "svg": ""}
