"""Figures that others have published: shown beside runs on request, always marked, in no statistic.

``DATASET.csv`` has a row for each method: a set-up, architecture, weighting, and a column ``task metric`` for
each figure, in the unit that our metric of this name has; a row without figures ran out of memory there.
``DATASET.toml`` says of each set-up where its figures come from and how they were made.
"""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from mtlbench.leaderboard.board import Row
from mtlbench.results import Summary


def rows() -> Iterator[tuple[str, Row]]:
    """Yield (dataset, row) for every published row, in the order of the files."""
    folder = files(__name__)
    for file in sorted((f for f in folder.iterdir() if f.name.endswith(".csv")), key=lambda f: f.name):
        dataset = file.name.removesuffix(".csv")
        setups = tomllib.loads((folder / f"{dataset}.toml").read_text(encoding="utf-8"))
        for line in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
            name, arch, weighting = (line.pop(key) for key in ("setup", "architecture", "weighting"))
            setup = setups[name]
            spec: dict[str, Any] = {
                "architecture": {"name": arch, "parameters": {}},
                "weighting": {"name": weighting, "parameters": {}},
            }
            row = Row("published", f"{arch}+{weighting}, {name}", spec)
            row.source = f"{setup['source']}. {setup['setup']}."
            for column, text in line.items():
                task, _, metric = column.partition(" ")
                if text:
                    row.cells[task, metric] = Summary(float(text), None, setup["seeds"])
            if not row.cells:
                row.source += " Out of memory, as printed there."
            yield dataset, row
