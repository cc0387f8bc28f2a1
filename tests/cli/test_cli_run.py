"""``mtlbench run`` as people use it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from click.testing import CliRunner, Result

from mtlbench.cli import cli

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(tmp_path: Path, tiny_plugin: Path) -> Invoke:
    """Run the command line on the tiny dataset, in a folder of its own."""

    def call(*flags: str, data: str = "tiny") -> Result:
        return CliRunner().invoke(cli, ["run", *arguments(tmp_path, tiny_plugin, data), *flags])

    return call


def arguments(folder: Path, plugin: Path, data: str = "tiny") -> list[str]:
    found = ["--data", data, "--plugin", str(plugin), "--epochs", "2", "--device", "cpu"]
    return [*found, "--results", str(folder / "results"), "--data-dir", str(folder / "data")]


def records(folder: Path) -> dict[str, dict[str, Any]]:
    paths = (folder / "results").glob("*/*/*.json")
    return {str(p.relative_to(folder / "results")): json.loads(p.read_text()) for p in paths}


def test_the_table_can_be_recomputed_from_the_records(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("--arch", "mmoe[experts=2]", "--weight", "rlw", "--seeds", "0,1")
    assert result.exit_code == 0, result.stderr
    assert "mmoe[experts=2] + rlw, seed 1: epoch 2/2" in result.stderr
    assert "mmoe[experts=2] + rlw on tiny" in result.stdout
    found = records(tmp_path)
    assert sum("stl+ew" in path for path in found) == 6
    by_id = {r["run_id"]: r for r in found.values()}
    deltas = []
    for run in (r for path, r in found.items() if "mmoe+rlw" in path):
        gains = []
        for task, base_id in run["baselines"].items():
            base = by_id[base_id]
            assert base["spec"]["seed"] == run["spec"]["seed"]
            assert base["comparability"] == run["comparability"]
            for metric, value in run["metrics"][task].items():
                reference = base["metrics"][task][metric]
                up = run["data"]["metrics"][task][metric]["higher_is_better"]
                gains.append(100 * (value - reference) / reference * (1 if up else -1))
        deltas.append(sum(gains) / 3)
    assert f"{sum(deltas) / 2:+.2f} ±" in result.stdout
    assert "mask" in result.stdout
    assert "iou ↑" in result.stdout
    assert "box_l2 ↓" in result.stdout


def test_a_finished_run_is_not_trained_again_unless_forced(invoke: Invoke, tmp_path: Path) -> None:
    assert invoke().exit_code == 0
    before = {p: p.read_bytes() for p in (tmp_path / "results").rglob("*") if p.is_file()}
    again = invoke()
    assert "validation" not in again.stderr
    assert "4 of 4 runs were there already" in again.stdout
    other = invoke("--weight", "uw")
    assert "3 of 4 runs were there already" in other.stdout
    forced = invoke("--force")
    assert forced.exit_code == 0
    assert {p: p.read_bytes() for p in before} == before
    attempts = [r for path, r in records(tmp_path).items() if path.endswith(".2.json")]
    assert [r["attempt"] for r in attempts] == [2]
    assert not list((tmp_path / "results" / ".checkpoints").iterdir())


def test_the_model_of_the_run_is_kept_and_made_later_where_it_is_missing(
    invoke: Invoke, tmp_path: Path
) -> None:
    def models() -> list[Path]:
        return sorted((tmp_path / "results").glob("*/*/*.pt"))

    assert invoke("--no-save-model").exit_code == 0
    before = records(tmp_path)
    assert not models()
    again = invoke()  # the default never trains what is there
    assert "4 of 4 runs were there already" in again.stdout
    assert not models()
    made = invoke("--save-model")
    assert "3 of 4 runs were there already" in made.stdout
    assert records(tmp_path) == before
    (model,) = models()
    state = torch.load(model, weights_only=True)["model"]
    assert sum(name.startswith("heads.") for name in state) > 3
    assert "4 of 4 runs were there already" in invoke("--save-model").stdout
    # Where training again gives other scores, the record stays and the model is not put beside it.
    model.unlink()
    path = next((tmp_path / "results").glob("tiny/hps+ew/*.json"))
    path.write_text(path.read_text().replace('"losses": {', '"losses": {"gone": 1, ', 1))
    other = invoke("--save-model")
    assert "came out otherwise" in other.stderr
    assert not models()
    forced = invoke("--force")
    assert forced.exit_code == 0
    assert [p.name.split(".")[1:] for p in models()] == [["2", "pt"]]


def test_json_lines_are_the_records_with_the_comparison(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("--json", "--seeds", "0,1", "--quiet")
    assert result.stderr == ""
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    stored = {r["run_id"]: r for r in records(tmp_path).values()}
    assert [line["spec"]["seed"] for line in lines] == [0, 1]
    for line in lines:
        comparison = line.pop("comparison")
        assert line == stored[line["run_id"]]
        percents = [m["percent"] for task in comparison["gains"].values() for m in task.values()]
        assert comparison["delta_mtl"]["tasks"] == pytest.approx(sum(percents) / 3)


def test_without_baseline_there_is_no_comparison(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("--no-baseline")
    assert result.exit_code == 0
    assert "Δ-MTL" not in result.stdout
    assert len(records(tmp_path)) == 1


def test_some_tasks_only(invoke: Invoke, tmp_path: Path) -> None:
    assert invoke("--tasks", "box,mask").exit_code == 0
    assert len(records(tmp_path)) == 3
    tasks = sorted(record["spec"]["tasks"] for record in records(tmp_path).values())
    assert tasks == [["box"], ["mask"], ["mask", "box"]]


def test_a_single_task_run_is_its_own_baseline(invoke: Invoke, tmp_path: Path) -> None:
    assert invoke("--arch", "stl", "--weight", "ew", "--tasks", "box").exit_code == 0
    assert len(records(tmp_path)) == 1
    assert "1 of 2 runs were there already" in invoke("--tasks", "box").stdout


def test_a_config_file_says_the_same_as_flags(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('arch = "mmoe"\nlr = 0.01\nbaseline = false\n')
    assert invoke("--config", str(tmp_path / "run.toml")).exit_code == 0
    record = next(iter(records(tmp_path).values()))
    assert record["spec"]["architecture"]["name"] == "mmoe"
    assert record["protocol"]["lr"] == 0.01
    assert invoke("--arch", "mmoe", "--lr", "0.01", "--no-baseline").exit_code == 0
    assert len(records(tmp_path)) == 1


def test_a_diverged_run_is_recorded_and_the_rest_goes_on(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("--weight", "explode", "--optimizer", "sgd", "--seeds", "0,1")
    assert result.exit_code == 3
    assert result.stderr.splitlines()[-1].startswith("error: 2 of the runs")
    assert "undefined: the run diverged" in result.stdout
    statuses = [r["status"] for r in records(tmp_path).values()]
    assert (statuses.count("diverged"), statuses.count("ok")) == (2, 6)
    again = invoke("--weight", "explode", "--optimizer", "sgd", "--seeds", "0,1")
    assert again.exit_code == 3
    assert "validation" not in again.stderr


def test_a_task_without_test_labels_is_undefined_not_lost(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("--json", data="tiny[blank=test/side]")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["metrics"]["side"] == {"accuracy": None}
    assert found["losses"]["side"] is None
    assert found["comparison"]["delta_mtl"] == {"tasks": None, "metrics": None}
    assert found["comparison"]["gains"]["side"]["accuracy"]["why"] == "no label in the test split"
    assert "undefined: no label in the test split" in invoke(data="tiny[blank=test/side]").stdout


def test_a_task_without_validation_labels_does_not_select(invoke: Invoke, tmp_path: Path) -> None:
    assert invoke("--no-baseline", data="tiny[blank=val/side]").exit_code == 0
    record = next(iter(records(tmp_path).values()))
    assert record["status"] == "ok"
    assert record["history"][0]["val"]["side"]["loss"] is None
    alone = invoke("--no-baseline", "--tasks", "side", data="tiny[blank=val/side]")
    assert alone.exit_code == 2
    assert "no task has a label in the val split" in alone.stderr.splitlines()[-1]


def test_a_record_made_elsewhere_is_pointed_out(invoke: Invoke, tmp_path: Path) -> None:
    assert invoke("--no-baseline").exit_code == 0
    path = next((tmp_path / "results").glob("*/*/*.json"))
    path.write_text(path.read_text().replace('"python": "', '"python": "0.'))
    assert "made with another set-up" in invoke("--no-baseline").stderr


WRONG = {
    "architecture": (["--arch", "mmeo"], "Did you mean 'mmoe'"),
    "weighting": (["--weight", "mgad"], "Did you mean 'mgda'"),
    "encoder": (["--encoder", "resnet81"], "Did you mean 'resnet18'"),
    "dataset": (["--data", "tini"], "Did you mean 'tiny'"),
    "parameter": (["--arch", "mmoe[expert=3]"], "Did you mean 'experts'"),
    "type": (["--arch", "mmoe[experts=many]"], "must be int"),
    "choice": (["--weight", "mgda[normalize=l3]"], '"l2"'),
    "brackets": (["--arch", "mmoe[experts=3"], "mmoe[experts=3"),
    "length": (["--weight", "fixed[weights=[1,2]]"], "mask, side, box"),
    "task": (["--tasks", "mask,sid"], "Did you mean 'side'"),
    "features": (["--grad", "features"], "weights losses"),
    "no shared features": (["--arch", "mmoe", "--weight", "mgda", "--grad", "features"], "no feature tensor"),
    "option": (["--epoch", "3"], "--epochs"),
    "epochs": (["--epochs", "0"], "at least 1"),
    "seeds": (["--seeds", "x"], "numbers such as"),
    "plugin": (["--plugin", "none.py"], "none.py"),
    "device": (["--device", "cuda:7"], "cuda:7"),
    "config": (["--config", "none.toml"], "none.toml"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_word_gets_one_clear_line(wrong: str, invoke: Invoke, tmp_path: Path) -> None:
    flags, word = WRONG[wrong]
    result = invoke(*flags)
    assert result.exit_code == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert word in lines[0]
    assert result.stdout == ""
    assert not records(tmp_path)


def test_an_unwritable_results_folder_is_said_before_training(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file, not a folder")
    result = invoke()
    assert result.exit_code == 2
    assert result.stderr.startswith("error: results folder")
    assert len(result.stderr.splitlines()) == 1


def test_a_full_disk_costs_one_line_and_no_record(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert invoke().exit_code == 0
    before = records(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = invoke("--weight", "uw")
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: can't write checkpoint")
    assert "No space left on device; make room" in last
    assert "Traceback" not in result.stderr
    assert records(tmp_path) == before


def test_a_truncated_dataset_file_is_named(tmp_path: Path, invoke: Invoke) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with h5py.File(folder / "pets-64.h5", "w") as file:
        file["images"] = [1, 2, 3]
    result = invoke(data="pets[size=64]")
    assert result.exit_code == 2
    assert "pets-64.h5" in result.stderr
    (folder / "pets-64.h5").write_bytes((folder / "pets-64.h5").read_bytes()[:100])
    result = invoke(data="pets[size=64]")
    assert result.exit_code == 2
    assert "pets-64.h5" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def _command(folder: Path, plugin: Path, *flags: str) -> list[str]:
    method = ["--arch", "mmoe", "--weight", "momentum", "--epochs", "60", "--no-baseline"]
    return [sys.executable, "-m", "mtlbench", "run", *arguments(folder, plugin), *method, *flags]


def _checkpoints(folder: Path) -> list[int]:
    """Return when the checkpoints were written."""
    found = []
    for path in sorted((folder / "results" / ".checkpoints").glob("*.pt")):
        with contextlib.suppress(FileNotFoundError):  # its run has ended
            found.append(path.stat().st_mtime_ns)
    return found


def test_killed_at_any_moment_and_resumed_gives_the_same_record(tmp_path: Path, tiny_plugin: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(_command(whole, tiny_plugin, "--quiet"), check=True, capture_output=True)
    draw = random.Random(7)
    killed = 0
    for _ in range(3):
        before = _checkpoints(broken)
        process = subprocess.Popen(
            _command(broken, tiny_plugin, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and _checkpoints(broken) == before:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.2))
        killed += process.poll() is None
        process.kill()
        process.wait()
    subprocess.run(_command(broken, tiny_plugin, "--resume"), check=True, capture_output=True)
    assert killed
    texts = [[p.read_bytes() for p in (f / "results").glob("*/*/*.json")] for f in (whole, broken)]
    assert len(texts[0]) == 1
    assert texts[0] == texts[1]
    assert not [p for p in (broken / "results").rglob("*") if p.suffix == ".tmp"]
    assert not list((broken / "results" / ".checkpoints").iterdir())
    models = [[p.read_bytes() for p in (f / "results").glob("*/*/*.pt")] for f in (whole, broken)]
    assert len(models[0]) == 1
    assert models[0] == models[1]


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path: Path, tiny_plugin: Path) -> None:
    command = _command(tmp_path, tiny_plugin, "--epochs", "100000")
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch 2/" in line:
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "--resume goes on" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert len(list((tmp_path / "results" / ".checkpoints").glob("*.pt"))) == 1
    assert not records(tmp_path)
