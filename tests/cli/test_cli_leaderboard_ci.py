from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mtlbench.cli import cli
from mtlbench.results import Cost, Record, Store, run_id


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


@pytest.fixture
def repository(tmp_path: Path, tiny_plugin: Path) -> Path:
    """A git repository with the records of one small run, and its leaderboard."""
    results = tmp_path / "results"
    made = call(
        "run", "--data", "tiny", "--plugin", tiny_plugin, "--epochs", 2, "--results", results, "--quiet",
        "--no-save-model", "--device", "cpu", "--lr", "0.01", "--head", "mask=fcn",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    assert call("leaderboard", "build", results, "-o", tmp_path / "board").exit_code == 0
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "results", "board")
    git(tmp_path, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "records")
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


def check(folder: Path, tiny_plugin: Path, *more: object) -> Result:
    return call(
        "leaderboard", "ci", folder / "results", "-o", folder / "board", "--base", "HEAD",
        "--plugin", tiny_plugin, *more,
    )  # fmt: skip


def test_what_holds_passes_and_a_record_is_trained_again(repository: Path, tiny_plugin: Path) -> None:
    for seed in range(2):
        found = check(repository, tiny_plugin, "--pick", seed)
        assert found.exit_code == 0, found.output
        assert "no record was changed since HEAD" in found.output
        assert "4 records, no fault found" in found.output
        assert "up to date" in found.output
        assert "trained again: equal to the last bit" in found.output


def test_a_changed_or_removed_old_record_fails(repository: Path, tiny_plugin: Path) -> None:
    path = Store(repository / "results").paths()[0]
    text = path.read_text()
    path.write_text(text + "\n")
    assert "records are only ever added" in check(repository, tiny_plugin).output
    path.unlink()
    found = check(repository, tiny_plugin)
    assert found.exit_code == 1
    assert path.name in found.output
    path.write_text(text)
    assert check(repository, tiny_plugin, "--no-rerun").exit_code == 0


def test_a_stale_page_fails(repository: Path, tiny_plugin: Path) -> None:
    page = repository / "board" / "index.html"
    page.write_text(page.read_text() + " ")
    found = check(repository, tiny_plugin)
    assert found.exit_code == 1
    assert "stale: index.html" in found.output


def test_scores_that_no_training_gives_fail(repository: Path, tiny_plugin: Path) -> None:
    for path in Store(repository / "results").paths():
        values = json.loads(path.read_text())
        for scores in values["metrics"].values():
            scores.update({name: score * 0.5 + 0.01 for name, score in scores.items()})
        path.write_text(json.dumps(values))
    call("leaderboard", "build", repository / "results", "-o", repository / "board")
    git(repository, "add", "-A")
    git(repository, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "better")
    found = check(repository, tiny_plugin)
    assert found.exit_code == 1
    assert "not equal to the last bit" in found.output
    assert "in the record" in found.output


def test_records_whose_data_is_elsewhere_are_told_and_another_is_trained_again(
    repository: Path, tiny_plugin: Path
) -> None:
    for path in Store(repository / "results").paths():
        values = json.loads(path.read_text())
        values["spec"]["dataset"] = {"name": "celeba", "parameters": {"size": None}}
        other = Record({**values, "run_id": run_id(values), "baselines": {}})
        Store(repository / "results").add(other, Cost(1.0, 1.0, 1.0, "cpu", ""))
    call("leaderboard", "build", repository / "results", "-o", repository / "board")
    orders = [check(repository, tiny_plugin, "--pick", seed, "--data-dir", repository) for seed in range(4)]
    assert {found.exit_code for found in orders} == {0}
    assert all("trained again: equal to the last bit" in found.output for found in orders)
    assert any("no record of celeba can be trained again here" in found.output for found in orders)


def test_a_wrong_base_is_one_clear_line(repository: Path, tiny_plugin: Path) -> None:
    found = check(repository, tiny_plugin, "--base", "no-such-revision")
    assert found.exit_code == 2
    assert "git can't compare" in found.output
