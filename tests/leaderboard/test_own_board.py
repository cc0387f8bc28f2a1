"""The leaderboard of this repository: what its CI checks, and that it stays small."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from mtlbench.cli import cli
from mtlbench.results import Store

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / "results" / "leaderboard"
PAGES = ROOT / "docs" / "_extra" / "leaderboard"

if not STORE.is_dir():
    pytest.skip("a source distribution has no records", allow_module_level=True)


def test_records_are_sound_pages_are_fresh_and_a_run_reproduces(monkeypatch: pytest.MonkeyPatch) -> None:
    # Processors of one kind may still differ in what a record does not tell, so within 5 % is enough here.
    monkeypatch.setattr("mtlbench.experiment.describe_processor", lambda: "that of the test")
    found = CliRunner().invoke(cli, ["leaderboard", "ci", str(STORE), "-o", str(PAGES), "--limit", "20"])
    assert found.exit_code == 0, found.output
    assert "up to date" in found.output
    assert "trained again" in found.output


def test_delta_of_the_pages_follows_from_the_records() -> None:
    board = PAGES / "leaderboard.json"
    found = CliRunner().invoke(cli, ["results", "verify", str(STORE), "--board", str(board)])
    assert found.exit_code == 0, found.output


def test_only_records_costs_and_grids_are_kept() -> None:
    files = [
        path
        for path in STORE.rglob("*")
        if path.is_file() and not path.relative_to(STORE).parts[0].startswith(".")
    ]
    assert {path.suffix for path in files} <= {".json", ".cost", ".toml"}
    assert sum(path.suffix == ".json" for path in files) == len(Store(STORE).paths()) > 0
    assert sum(path.stat().st_size for path in files) < 4e6
