"""Learning curves together and alone: what is drawn is what the records say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from scipy.stats import t

from mtlbench.cli import cli
from mtlbench.inspection.learning import Pair, Trial, together
from mtlbench.results import Cost, Record, Store

TINY = Path(__file__).resolve().parents[1] / "plugins" / "tiny.py"


def invoke(*words: str) -> str:
    done = CliRunner().invoke(cli, list(words))
    assert done.exit_code == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tasks with two seeds and their baselines, scored on every step, and pictures of seed 1."""
    found = tmp_path_factory.mktemp("learning")
    flags = ["--plugin", str(TINY), "--data-dir", str(found / "data"), "--results", str(found / "results")]
    protocol = [
        "--data",
        "tiny",
        "--tasks",
        "mask,side",
        "--epochs",
        "2",
        "--batch-size",
        "8",
        "--device",
        "cpu",
    ]
    invoke("run", *flags, *protocol, "--arch", "hps", "--seeds", "0,1", "--validate-every", "1", "--quiet")
    notice = invoke("run", *flags, *protocol, "--arch", "hps", "--seed", "0", "--validate-every", "1")
    assert "without --validate-every" not in notice
    invoke("inspect", *flags, str(record(found, "hps+ew", 1)), "-o", str(found / "pictures"), "--images", "0")
    return found


def record(folder: Path, row: str, seed: int, task: str = "mask") -> Path:
    for path in (folder / "results" / "tiny" / row).glob("*.json"):
        spec = json.loads(path.read_text(encoding="utf-8"))["spec"]
        if spec["seed"] == seed and task in spec["tasks"]:
            return path
    raise AssertionError((row, seed))


def curve(path: Path, task: str, score: str) -> list[float]:
    rows = json.loads(path.read_text(encoding="utf-8"))["history"]
    return [point["val"][task][score] for row in rows for point in (*row["within"], row)]


def test_curves_are_those_of_the_records_with_every_seed(folder: Path) -> None:
    shown = json.loads((folder / "pictures" / "together.json").read_text(encoding="utf-8"))
    assert list(shown) == ["mask", "side"]
    for task, found in shown.items():
        assert found["epochs"] == [pytest.approx(step / 3, rel=1e-4) for step in range(1, 7)]
        assert sorted(found["seeds"]) == ["0", "1"]
        logs: list[list[float]] = []
        for seed in (0, 1):
            joint, alone = (
                curve(record(folder, row, seed, task), task, "loss") for row in ("hps+ew", "stl+ew")
            )
            assert found["seeds"][str(seed)]["joint"]["loss"] == pytest.approx(joint, rel=1e-4)
            assert found["seeds"][str(seed)]["alone"]["loss"] == pytest.approx(alone, rel=1e-4)
            logs.append([math.log(a / b) for a, b in zip(joint, alone, strict=True)])
            metric = {"mask": "iou", "side": "accuracy"}[task]
            expected = curve(record(folder, "stl+ew", seed, task), task, metric)
            assert found["seeds"][str(seed)]["alone"][metric] == pytest.approx(expected, rel=1e-4)
        means = [sum(seed) / len(seed) for seed in logs]
        middle, half = sum(means) / 2, abs(means[0] - means[1]) / 2 * t.ppf(0.975, 1)
        assert found["loss_ratio"] == pytest.approx(math.exp(middle), rel=1e-3)
        assert found["loss_ratio_95"] == [
            pytest.approx(math.exp(middle + side * half), rel=1e-3) for side in (-1, 1)
        ]
    page = (folder / "pictures" / "index.html").read_text(encoding="utf-8")
    assert "the 2 seeds" in page
    assert "measured training time" in page


def test_without_baselines_there_is_nothing_to_compare(folder: Path, tmp_path: Path) -> None:
    single = record(folder, "stl+ew", 0)
    invoke("inspect", str(single), "--plugin", str(TINY), "-o", str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", "curves.json", "index.html"}
    found = Record.loads(record(folder, "hps+ew", 0).read_text(encoding="utf-8"), "here")
    assert together([Pair(0, Trial(found, None), {})]) is None


def test_an_old_record_without_scores_within_epochs_is_told(folder: Path, tmp_path: Path) -> None:
    flags = [
        "--plugin",
        str(TINY),
        "--data-dir",
        str(tmp_path / "data"),
        "--results",
        str(tmp_path / "results"),
    ]
    flags += ["--data", "tiny", "--epochs", "1", "--batch-size", "8", "--device", "cpu", "--no-baseline"]
    invoke("run", *flags)
    assert "made without --validate-every" in invoke("run", *flags, "--validate-every", "1")
    assert Store(tmp_path / "results").paths()


def made(curve: list[float], seed: int) -> Record:
    metric = {"unit": "1", "higher_is_better": True, "version": 1, "auxiliary": False}
    rows = [{"epoch": e + 1, "val": {"t": {"loss": loss, "m": -loss}}} for e, loss in enumerate(curve)]
    values: dict[str, Any] = {
        "spec": {"tasks": ["t"], "seed": seed},
        "data": {"metrics": {"t": {"m": metric}}},
        "history": rows,
    }
    return Record(values)


def test_the_words_say_who_is_where_first() -> None:
    """By hand: together is at 2, the best that alone reaches, after 1 epoch; alone after 3."""
    cost = Cost(6.0, 1.0, 1.0, "cpu", "")
    joint, alone = made([2.0, 1.0, 0.5], 0), made([8.0, 4.0, 2.0], 0)
    pictures = [together([Pair(0, Trial(joint, cost), {"t": Trial(alone, found)})]) for found in (cost, None)]
    for picture in pictures:
        assert picture is not None
        found: Any = picture.numbers["t"]
        assert found["epochs_to_the_loss_that_both_reach"] == {"joint": 1.0, "alone": 3.0}
        assert found["loss_ratio"] == pytest.approx(0.25)
        assert found["loss_ratio_95"] == []
        assert (
            "t: loss together 0.25 x loss alone; lowest of both after 1 epochs, alone 3"
            in picture.figure.get_suptitle().replace("\n", " ")
        )
    assert len(pictures[0].figure.axes) == 3
    assert len(pictures[1].figure.axes) == 2  # without a cost there is no panel over time
    assert pictures[0].figure.axes[2].get_lines()[0].get_xdata().tolist() == [2.0, 4.0, 6.0]


def test_a_loss_of_zero_has_no_ratio() -> None:
    pair = Pair(0, Trial(made([1.0, 0.0], 0), None), {"t": Trial(made([1.0, 0.5], 0), None)})
    picture = together([pair])
    assert picture is not None
    found: Any = picture.numbers["t"]
    assert found["loss_ratio"] is None
