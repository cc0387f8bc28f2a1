"""What it takes to build a leaderboard of 10,000 records, from the command to the four files.

Run: make bench, or python -m pytest benchmarks/test_leaderboard.py --benchmark-enable --benchmark-only

The records are those of a sweep of architectures and weightings over 3 seeds, with 5 epochs of history. A
figure is processor time of the whole command, the start of Python and the imports included: the best of the
rounds, which is what a busy machine disturbs least.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from tables import Tables

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import stores

TABLE = "A leaderboard: seconds of processor time"
SEEDS = 3


def written(path: Path, content: str) -> bool:
    """Write a file without waiting for the disk, as 10,000 files of a benchmark should be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return True


@pytest.mark.parametrize("records", [1_000, 10_000])
def test_build(benchmark: Any, tables: Tables, tmp_path: Path, records: int) -> None:
    side = round((records / SEEDS) ** 0.5)
    names = [f"arch{i}" for i in range(side)], [f"weight{i}" for i in range(records // SEEDS // side)]
    with patch("mtlbench.results.store.create", written):
        store = stores.fill(tmp_path / "results", *names, range(SEEDS))
    assert abs(len(store.paths()) - records) < records / 40
    command = [sys.executable, "-m", "mtlbench", "leaderboard", "build", str(store.root), "-o", str(tmp_path)]
    spent = []

    def build() -> None:
        before = os.times()
        subprocess.run(command, check=True, capture_output=True)
        after = os.times()
        spent.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )

    benchmark.pedantic(build, rounds=1 if tables.quick else 2)
    tables.cell(TABLE, "`leaderboard build`", f"{records:,} records", f"{min(spent):.1f}")
