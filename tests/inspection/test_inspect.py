"""``mtlbench inspect`` as people use it, and what its numbers say."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from mtlbench.cli import cli
from mtlbench.inspection import history
from mtlbench.inspection.predictions import kind_of
from mtlbench.inspection.subject import _choose, rebuild
from mtlbench.registry import Registry
from mtlbench.results import Record, Store, compare

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"
KINDS, TINY = PLUGINS / "kinds.py", PLUGINS / "tiny.py"


def run(folder: Path, *flags: str) -> Path:
    """Make a run and return the path of its record."""
    common = ["--epochs", "2", "--batch-size", "5", "--device", "cpu", "--quiet", "--no-baseline"]
    common += ["--plugin", str(KINDS), "--plugin", str(TINY), "--data-dir", str(folder / "data")]
    made = CliRunner().invoke(cli, ["run", *common, "--results", str(folder / "results"), *flags])
    assert made.exit_code == 0, made.stderr
    newest = (folder / "results").glob("*/*/*.json")
    return max(newest, key=lambda path: path.stat().st_mtime_ns)


def inspect(folder: Path, name: str | Path, *flags: str) -> Result:
    common = ["--plugin", str(KINDS), "--plugin", str(TINY), "--data-dir", str(folder / "data")]
    return CliRunner().invoke(
        cli, ["inspect", str(name), *common, "--results", str(folder / "results"), *flags]
    )


@pytest.fixture(scope="module")
def glass(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of all kinds of tasks on an architecture that shows all, and its pictures."""
    folder = tmp_path_factory.mktemp("glass")
    record = run(folder, "--arch", "glass", "--weight", "ew", "--data", "kinds", "--probe", "1")
    result = inspect(folder, record.stem[:7], "-o", str(folder / "pictures"), "--images", "0,3")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two of these tasks."""
    folder = tmp_path_factory.mktemp("small")
    run(folder, "--arch", "glass", "--weight", "mgda", "--data", "kinds", "--tasks", "depth,box")
    return folder


def numbers(folder: Path, name: str) -> Any:
    return json.loads((folder / "pictures" / f"{name}.json").read_text(encoding="utf-8"))


def load(folder: Path) -> tuple[Record, Store]:
    (path,) = (folder / "results").glob("*/*/*.json")
    return Record.loads(path.read_text(encoding="utf-8"), str(path)), Store(folder / "results")


def test_every_picture_is_there_with_its_numbers_and_on_the_page(glass: Path) -> None:
    names = {path.stem for path in (glass / "pictures").glob("*.png")}
    tasks = ["parts", "depth", "normal", "copy", "kind", "yes", "box", "pose"]
    expected = {"summary", "gradients", "curves", "predictions-1", "predictions-2", "gates", "mixing"}
    assert names == expected | {f"attention-{t}" for t in tasks} | {f"features-{t}" for t in tasks}
    assert {path.stem for path in (glass / "pictures").glob("*.json")} == names
    page = (glass / "pictures" / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(names)
    assert "http" not in page
    for path in (glass / "pictures").glob("*.png"):
        with Image.open(path) as image:
            assert "Software" not in image.info
            low, high = image.convert("L").getextrema()
            assert low < 100  # not an empty sheet
            assert high == 255


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_pictures_and_numbers_repeat_byte_for_byte(kind: str, small: Path, tmp_path: Path) -> None:
    (path,) = (small / "results").glob("*/*/*.json")
    digests = []
    for name in "ab":
        done = inspect(small, path, "-o", str(tmp_path / name), "--format", kind, "--images", "0,3")
        assert done.exit_code == 0, done.stderr
        files = sorted((tmp_path / name).iterdir())
        digests.append({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files})
    assert digests[0] == digests[1]
    assert len(digests[0]) == 2 * len(list((tmp_path / "a").glob(f"*.{kind}"))) + 1
    assert not [f for f in (tmp_path / "a").glob("*.svg") if b"<dc:date>" in f.read_bytes()]


def test_gates_mixing_and_attention_are_those_of_the_selected_model(glass: Path) -> None:
    record, store = load(glass)
    subject = rebuild(record, store, Registry([KINDS, TINY]), glass / "data")
    batch = subject.dataset.split("test").fetch(torch.arange(10)).to(torch.device("cpu"))
    with torch.no_grad():
        readings = subject.model.architecture(batch.inputs).readings
    found = numbers(glass, "gates")
    assert found["samples"] == 10
    for reading in readings:
        if reading.kind == "gate":
            shown = found["gates"][reading.place][reading.task]
            for index, name in enumerate(reading.names):
                values = reading.values[:, index].double()
                assert shown[name]["mean"] == pytest.approx(float(values.mean()), rel=1e-4)
                assert shown[name]["sd"] == pytest.approx(float(values.std(correction=0)), rel=1e-3, abs=1e-7)
        elif reading.kind == "attention":
            shown = numbers(glass, f"attention-{reading.task}")["samples"]["3"][reading.place]
            expected = reading.values[3].mean(0)
            torch.testing.assert_close(torch.tensor(shown["values"]), expected, rtol=1e-4, atol=1e-6)
    matrices = numbers(glass, "mixing")["matrices"]
    assert matrices["stage1"]["mean"][0][:2] == pytest.approx([0.95, 0.05])
    assert matrices["stage1"]["mean"][0] == matrices["stage1"]["values"][:8]
    assert matrices["stage2"]["mean"][0][0] == 0
    assert matrices["stage2"]["sd"][0][0] == pytest.approx(0.95)


def test_predictions_are_those_of_the_selected_model(glass: Path) -> None:
    record, store = load(glass)
    subject = rebuild(record, store, Registry([KINDS, TINY]), glass / "data")
    split = subject.dataset.split("test")
    batch = split.fetch(torch.tensor([0, 3])).to(torch.device("cpu"))
    with torch.no_grad():
        outputs = subject.model(batch.inputs)
    found: dict[str, Any] = {}
    for part in (1, 2):
        for index, by_task in numbers(glass, f"predictions-{part}")["samples"].items():
            found.setdefault(index, {}).update(by_task)
    for row, index in enumerate("03"):
        shown = found[index]
        assert shown["parts"]["predicted"]["values"] == outputs["parts"][row].argmax(0).tolist()
        assert shown["parts"]["target"]["values"][0][:3] == [-1, -1, -1]
        assert shown["depth"]["target"][0]["values"][0][2] is None
        depth = torch.tensor(shown["depth"]["predicted"][0]["values"])
        torch.testing.assert_close(depth, outputs["depth"][row, 0], rtol=1e-4, atol=1e-5)
        assert shown["kind"]["predicted"] == int(outputs["kind"][row].argmax())
        assert sum(shown["kind"]["probabilities"]) == pytest.approx(1, abs=1e-4)
        assert shown["yes"]["probabilities"][1] == pytest.approx(
            float(outputs["yes"][row, 0].sigmoid()), rel=1e-4
        )
        assert shown["box"]["predicted"] == pytest.approx(outputs["box"][row].tolist(), rel=1e-4)
        task = subject.tasks[7]
        one = slice(row, row + 1)
        loss = task.loss(outputs["pose"][one], batch.targets["pose"][one])
        assert shown["pose"]["loss"] == pytest.approx(float(loss), rel=1e-4)
    assert found["0"]["kind"]["target"] is None
    assert found["0"]["kind"]["loss"] is None
    assert found["0"]["box"]["target"] == [None] * 4


def test_a_task_is_drawn_by_what_it_predicts() -> None:
    registry = Registry([KINDS, TINY])
    tasks = {task.name: kind_of(task) for task in registry.get("datasets", "kinds").load().tasks}
    assert tasks == {
        "parts": "class-map", "depth": "value-map", "normal": "normals", "copy": "image-map",
        "kind": "classes", "yes": "classes", "box": "boxes", "pose": "values",
    }  # fmt: skip
    tiny = {task.name: kind_of(task) for task in registry.get("datasets", "tiny").load().tasks}
    assert tiny == {"mask": "class-map", "side": "classes", "box": "boxes"}


def test_the_summary_is_taken_from_the_history(glass: Path) -> None:
    record, _ = load(glass)
    rows = [row["gradients"] for row in record.history]
    shown = numbers(glass, "summary")
    for a, b in (("parts", "depth"), ("kind", "pose")):
        for key in ("cosine", "conflict"):
            mean = math.fsum(row[key][a][b] for row in rows) / len(rows)
            assert shown["pairs"][a][b][key] == pytest.approx(mean, rel=1e-4, abs=1e-9)
            assert shown["pairs"][b][a] == shown["pairs"][a][b]
    assert shown["gain_percent"] == {}
    assert numbers(glass, "gradients")["cosine"]["parts · depth"] == [
        pytest.approx(row["cosine"]["parts"]["depth"], rel=1e-4) for row in rows
    ]
    curves = numbers(glass, "curves")
    assert curves["losses"]["depth"]["val"] == [
        pytest.approx(row["val"]["depth"]["loss"], rel=1e-4) for row in record.history
    ]


def test_the_words_say_who_pulls_against_whom() -> None:
    def verdict(cosine: float, conflict: float, gain: float, architecture: str = "hps") -> list[str]:
        pairs = {"a": {"b": cosine, "c": 0.3}, "b": {"c": 0.3}}
        rates = {"a": {"b": conflict, "c": 0.1}, "b": {"c": 0.1}}
        found = {"norm": {"a": 1.0, "b": 2.0, "c": None}, "cosine": pairs, "conflict": rates}
        metric = {"unit": "1", "higher_is_better": True, "version": 1, "auxiliary": False}
        values = {
            "spec": {"tasks": ["a", "b", "c"], "architecture": {"name": architecture}},
            "status": "ok",
            "history": [{"epoch": 1, "gradients": found}, {"epoch": 2, "gradients": None}],
            "data": {"metrics": {task: {"m": metric} for task in "abc"}},
            "metrics": {"a": {"m": 1 + gain}, "b": {"m": 1.0}, "c": {"m": None}},
        }
        base = {task: Record({"status": "ok", "metrics": {task: {"m": 1.0}}}) for task in "abc"}
        picture = history.verdict(Record(values), compare(Record(values), base))
        assert picture is not None
        words = picture.numbers["words"]
        assert isinstance(words, list)
        return words

    assert verdict(-0.2, 0.7, 0.1) == [
        "a and b pull against each other in 70% of the steps.",
        "Better together: a.",
    ]
    assert verdict(-0.2, 0.7, 0.1, "stl")[1] == "Nothing is shared here either: gains show what chance does."
    assert verdict(-0.01, 0.6, 0.0)[0].startswith("On average no two tasks pull much against each other")
    assert verdict(0.1, 0.3, -0.1) == [
        "On average no two tasks pull much against each other; in conflict most often: a and b, in 30% of"
        " the steps.",
        "Better apart: a.",
    ]


def test_tasks_with_inputs_of_their_own_have_pictures_of_their_own(tmp_path: Path) -> None:
    record = run(tmp_path, "--arch", "hps", "--weight", "mgda", "--data", "tiny[apart=true]")
    done = inspect(tmp_path, record, "-o", str(tmp_path / "out"), "--split", "val")
    assert done.exit_code == 0, done.stderr
    names = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert {"predictions-1", "predictions-2", "predictions-3", "features-mask", "features-box"} <= names
    found = json.loads((tmp_path / "out" / "predictions-3.json").read_text(encoding="utf-8"))
    assert found["split"] == "val"
    assert list(found["samples"]) == ["0", "1", "3", "4"]  # six samples of this task, four shown


def test_of_a_table_predictions_are_drawn_and_no_maps(tmp_path: Path) -> None:
    record = run(tmp_path, "--data", "relatedness", "--epochs", "1", "--batch-size", "64")
    done = inspect(tmp_path, record, "-o", str(tmp_path / "out"), "--images", "0,1")
    assert done.exit_code == 0, done.stderr
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == {"curves", "predictions"}


def test_an_encoder_that_started_from_a_file_is_rebuilt_without_it() -> None:
    """And normalises its input as it did, which followed from the file."""
    registry = Registry([KINDS, TINY])
    named = {"name": "vgg16", "parameters": {"batch_norm": False, "weights": "0" * 16, "normalize": None}}
    choice = _choose(registry, "encoders", named)
    assert choice.parameters["weights"] is None
    assert choice.parameters["normalize"] is True
    kept = {"name": "vgg16", "parameters": {"batch_norm": True, "weights": None, "normalize": None}}
    assert _choose(registry, "encoders", kept).parameters == kept["parameters"]


def test_a_run_without_its_model_shows_what_the_record_tells(tmp_path: Path) -> None:
    record = run(tmp_path, "--data", "tiny", "--no-save-model")
    done = inspect(tmp_path, record, "-o", str(tmp_path / "out"))
    assert done.exit_code == 0
    assert done.stderr.count("\n") == 1
    assert "--save-model added, trains it again" in done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"curves.png", "curves.json", "index.html"}


def test_changed_code_is_told_and_changed_data_refused(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small / "results", tmp_path / "results")
    (path,) = (tmp_path / "results").glob("*/*/*.json")
    values = json.loads(path.read_text(encoding="utf-8"))
    values["code"]["architecture"]["source"] = "0" * 16
    path.write_text(json.dumps(values), encoding="utf-8")
    done = inspect(tmp_path, path, "-o", str(tmp_path / "out"), "--images", "1")
    assert done.exit_code == 0
    assert "the code of architecture 'glass' has changed" in done.stderr
    values["spec"]["dataset"]["parameters"]["salt"] = 1
    path.write_text(json.dumps(values), encoding="utf-8")
    refused = inspect(tmp_path, path, "-o", str(tmp_path / "none"))
    assert refused.exit_code == 2
    assert "fingerprint" in refused.stderr
    assert "--data-dir" in refused.stderr
    assert not (tmp_path / "none").exists()


WRONG: dict[str, tuple[Callable[[str], list[str]], str]] = {
    "no such id": (lambda run: ["ffffffffffff"], "begins with 'ffffffffffff'"),
    "no id at all": (lambda run: ["mmoe+rlw"], "neither a record's path"),
    "no such path": (lambda run: ["there/is/none.json"], "there is no record"),
    "no such attempt": (lambda run: [f"{run}.2"], "begins with"),
    "images": (lambda run: [run, "--images", "3,x"], "--images"),
    "too many": (lambda run: [run, "--images", "0-40"], "up to 16"),
    "an image beyond": (lambda run: [run, "--images", "10"], "has 10 samples"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_word_gets_one_clear_line(wrong: str, small: Path, tmp_path: Path) -> None:
    arguments, words = WRONG[wrong]
    (path,) = (small / "results").glob("*/*/*.json")
    done = inspect(small, *arguments(path.stem), "-o", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert words in done.stderr


def test_a_beginning_that_fits_two_runs_and_a_folder_that_is_a_file(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small / "results", tmp_path / "results")
    (path,) = (tmp_path / "results").glob("*/*/*.json")
    values = json.loads(path.read_text(encoding="utf-8"))
    other = path.stem[:4] + "0" * 12
    path.with_name(f"{other}.json").write_text(json.dumps(values | {"run_id": other}), encoding="utf-8")
    done = inspect(tmp_path, path.stem[:4])
    assert done.exit_code == 2
    assert "is the beginning of 2 runs" in done.stderr
    (tmp_path / "file").write_text("")
    done = inspect(tmp_path, path, "-o", str(tmp_path / "file"), "--images", "0")
    assert done.exit_code == 2
    assert "-o" in done.stderr
