from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import stores
from click.testing import CliRunner, Result

from mtlbench.cli import cli
from mtlbench.results import Store


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return stores.fill(tmp_path / "results")


def test_build_check_and_stale(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "board"
    stale = call("leaderboard", "build", store.root, "-o", out, "--check")
    assert stale.exit_code == 1
    assert "stale: index.html, leaderboard.md, leaderboard.csv, leaderboard.json" in stale.output
    assert not out.exists()
    built = call("leaderboard", "build", store.root, "-o", out)
    assert built.exit_code == 0, built.output
    assert "1 table, 10 rows from 33 records, written" in built.output
    assert "up to date" in call("leaderboard", "build", store.root, "-o", out, "--check").output
    store.add(stores.record("cgc", "ew", 0, None, status="failed", reason="x"), stores.cost(1))
    assert call("leaderboard", "build", store.root, "-o", out, "--check").exit_code == 1


def test_the_bytes_do_not_depend_on_hash_seed_locale_or_time_zone(store: Store, tmp_path: Path) -> None:
    contents = []
    for number, settings in enumerate(
        (
            {"PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C"},
            {"PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8", "LANG": "de_DE.UTF-8"},
        )
    ):
        out = tmp_path / str(number)
        command = [sys.executable, "-m", "mtlbench", "leaderboard", "build", str(store.root), "-o", str(out)]
        subprocess.run(command, check=True, env={**os.environ, **settings}, capture_output=True)
        contents.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 4


def test_show_prints_the_same_table(store: Store) -> None:
    shown = call("leaderboard", "show", store.root)
    assert shown.exit_code == 0
    assert "single-task" in shown.output
    assert "p: paired t test against hps+ew" in shown.output
    assert "best" in shown.output


def test_compare_sets_two_rows_side_by_side(store: Store) -> None:
    shown = call("compare", "hps+ew", "mmoe+rlw", "--results", store.root)
    assert shown.exit_code == 0
    assert "difference" in shown.output
    assert "depth abs ↓ [m]" in shown.output
    wrong = call("compare", "hps+ew", "mmo+rlw", "--results", store.root)
    assert wrong.exit_code == 2
    assert "Did you mean 'mmoe+rlw'" in wrong.output


def test_rows_that_never_share_a_table_are_refused(store: Store) -> None:
    stores.fill(store.root, archs=["cgc"], weights=["ew"], epochs=9)
    wrong = call("compare", "hps+ew", "cgc+ew", "--results", store.root)
    assert wrong.exit_code == 2
    assert "never share a table" in wrong.output


@pytest.mark.parametrize("command", [["leaderboard", "show"], ["results", "verify"], ["results", "prune"]])
def test_a_missing_folder_is_one_clear_line(command: list[str], tmp_path: Path) -> None:
    wrong = call(*command, tmp_path / "nowhere")
    assert wrong.exit_code == 2
    assert wrong.output.count("\n") == 1
    assert "does not exist" in wrong.output


def test_verify_finds_an_edited_record_and_an_edited_board(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "board"
    call("leaderboard", "build", store.root, "-o", out)
    board = out / "leaderboard.json"
    fine = call("results", "verify", store.root, "--board", board)
    assert fine.exit_code == 0, fine.output
    assert "33 records, no fault found" in fine.output
    content = json.loads(board.read_text())
    content["tables"][0]["rows"][0]["delta_mtl_by_seed"]["0"] = 99.0
    board.write_text(json.dumps(content))
    assert "its records give" in call("results", "verify", store.root, "--board", board).output
    path = store.paths()[0]
    path.write_text(path.read_text().replace('"epochs": 5', '"epochs": 50', 1))
    edited = call("results", "verify", store.root)
    assert edited.exit_code == 1
    assert str(path) in edited.output


def test_a_damaged_record_is_one_clear_line(store: Store, tmp_path: Path) -> None:
    path = store.paths()[3]
    path.write_text(path.read_text().replace('"attempt": 1', '"attempt": "one"'))
    for command in (
        ["leaderboard", "show", store.root],
        ["leaderboard", "build", store.root, "-o", tmp_path],
    ):
        wrong = call(*command)
        assert wrong.exit_code == 2
        assert wrong.output.count("\n") == 1
        assert path.name in wrong.output


def test_merge_adds_what_is_missing_and_keeps_what_is_there(store: Store, tmp_path: Path) -> None:
    other = stores.fill(tmp_path / "other", archs=["cgc"])
    merged = tmp_path / "all"
    some = next(other.records())
    other.add_model(some, b"a model")
    first = call("results", "merge", store.root, other.root, "-o", merged)
    assert first.exit_code == 0, first.output
    assert "42 records added, 6 were there already" in first.output
    assert len(Store(merged).paths()) == 42
    assert Store(merged).model(some).read_bytes() == b"a model"
    assert all(Store(merged).cost(record) is not None for record in Store(merged).records())
    path = store.paths()[0]
    path.write_text(path.read_text().replace('"threads": 1', '"threads": 8'))
    second = call("results", "merge", store.root, "-o", merged)
    assert second.exit_code == 1
    assert "1 records differ" in second.output
    assert '"threads": 1' in (merged / path.relative_to(store.root)).read_text()


def test_prune_removes_leftovers_only(store: Store) -> None:
    kept = store.paths()
    torn = kept[0].parent / f".{kept[0].name}.xyz.tmp"
    torn.write_text("half")
    assert "1 files would be removed" in call("results", "prune", store.root, "--dry-run").output
    assert torn.exists()
    assert call("results", "prune", store.root).exit_code == 0
    assert not torn.exists()
    assert store.paths() == kept
