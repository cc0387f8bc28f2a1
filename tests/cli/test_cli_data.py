"""`mtlbench data`: what there is, what is prepared, what is broken, and what it looks like."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from mtlbench.cli import cli
from mtlbench.registry import Registry


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["data", *map(str, arguments)])


@pytest.fixture
def hands(tmp_path: Path) -> Path:
    """A few drawn images in the layout of the Fingers dataset."""
    source = tmp_path / "hands"
    for folder, count in (("train", 20), ("test", 4)):
        (source / folder).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((32, 32), 10 * number, np.uint8)
            Image.fromarray(pixels).save(source / folder / f"x{number}_{number % 6}{'LR'[number % 2]}.png")
    return source


def test_ls_names_every_dataset_and_what_to_do(tmp_path: Path, hands: Path, tiny_plugin: Path) -> None:
    before = run("ls", "--data-dir", tmp_path, "--plugin", tiny_plugin)
    assert before.exit_code == 0, before.output
    lines = {line.split()[0]: line for line in before.output.splitlines()}
    for plugin in Registry([tiny_plugin]).plugins("datasets"):
        assert plugin.name in lines
        assert plugin.load().licence in lines[plugin.name]
    assert "count, hand" in lines["fingers"]
    assert "to prepare: mtlbench data prepare fingers --source DIR" in lines["fingers"]
    assert "40 tasks" in lines["celeba"]
    assert "ready: the built-in sample" in lines["pets"]
    assert "ready: 600 scenes, rendered" in lines["rooms"]
    assert "say path and targets: table[path=…,targets=…]" in lines["table"]
    assert lines["digits"].endswith("ready")
    assert not list(tmp_path.glob("*.h5")), "listing prepares nothing"

    assert run("prepare", "fingers", "--source", hands, "--size", 32, "--data-dir", tmp_path).exit_code == 0
    after = run("ls", "--data-dir", tmp_path).output
    (line,) = [line for line in after.splitlines() if line.startswith("fingers")]
    assert "fingers-32.h5 (" in line
    assert "18 train, 2 val, 4 test" in line
    assert line.endswith("ready")


def test_a_broken_file_is_a_line_of_ls_and_an_error_of_verify(tmp_path: Path, hands: Path) -> None:
    assert run("prepare", "fingers", "--source", hands, "--size", 32, "--data-dir", tmp_path).exit_code == 0
    path = tmp_path / "fingers-32.h5"
    path.write_bytes(path.read_bytes()[:-500])
    listed = run("ls", "--data-dir", tmp_path)
    assert listed.exit_code == 0
    (line,) = [line for line in listed.output.splitlines() if line.startswith("fingers")]
    assert f"broken: {path} is truncated" in line
    for command in ("verify", "info"):
        result = run(command, "fingers", "--data-dir", tmp_path)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: {path} is truncated")
        assert result.stderr.count("\n") == 1


def test_info_answers_what_people_ask_first(tmp_path: Path) -> None:
    shown = run("info", "nyuv2", "--data-dir", tmp_path)
    assert shown.exit_code == 0, shown.output
    text = " ".join(shown.output.split())
    cls = Registry().get("datasets", "nyuv2").load()
    for part in (cls.licence, cls.citation, cls.homepage, cls.download):
        assert " ".join(part.split()) in text
    assert "segmentation map of 13, CrossEntropy iou, pixel_accuracy (higher is better)" in text
    assert "depth map of 1, L1 abs_error [m], rel_error (lower is better)" in text
    assert "795 and 654 scenes" in text
    for spec, samples in (
        ("digits", "2000 train, 500 val, 500 test"),
        ("digits[count=40]", "40 train, 10 val"),
    ):
        assert samples in run("info", spec, "--data-dir", tmp_path).output
    assert run("info", "nyu2").stderr.startswith("error: unknown dataset 'nyu2'. Did you mean 'nyuv2'?")


def test_verify_says_what_is_there(tmp_path: Path, hands: Path) -> None:
    assert run("prepare", "fingers", "--source", hands, "--size", 32, "--data-dir", tmp_path).exit_code == 0
    result = run("verify", "fingers", "--data-dir", tmp_path)
    assert result.exit_code == 0, result.output
    dataset = Registry().choose("datasets", "fingers").build(data_dir=tmp_path)
    head, *odd = result.output.splitlines()
    assert head == f"fingers: fingerprint {dataset.fingerprint()}, 18 train, 2 val, 4 test"
    assert odd == []
    for path in (hands / "train").glob("*_5?.png"):
        path.unlink()
    assert run("prepare", "fingers", "--source", hands, "--size", 32, "--data-dir", tmp_path).exit_code == 0
    result = run("verify", "fingers", "--data-dir", tmp_path)
    assert result.exit_code == 0
    assert result.output.splitlines()[1:] == ["odd: fingers: no training sample of 'count' has class 5"]


def test_verify_reads_every_published_file(tmp_path: Path, hands: Path) -> None:
    good = run("verify", "fingers", "--source", hands)
    assert (good.exit_code, good.output) == (0, f"{hands}: all 24 samples can be read\n")
    bad = sorted((hands / "train").iterdir())[3]
    bad.write_bytes(bad.read_bytes()[:40])
    (hands / "test" / "x0_0L.png").write_bytes(b"no image")
    result = run("verify", "fingers", "--source", hands)
    assert result.exit_code == 2
    assert bad.name in result.stdout
    assert "test: x0_0L.png: is no image" in result.stdout
    assert result.stderr.startswith(f"error: {hands}: 2 of 24 samples cannot be read, the first because of ")
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*.h5"))
    for name, line in {
        "digits": "error: Digits reads no folder of published files: leave --source out\n",
        "rooms": "error: Rooms reads no folder of published files: leave --source out\n",
        "fingers": f"error: --source {tmp_path / 'gone'}: there is no such folder\n",
    }.items():
        result = run("verify", name, "--source", tmp_path / "gone")
        assert (result.exit_code, result.stderr) == (2, line)


@pytest.mark.real
def test_verify_reads_the_photographs_and_names_the_broken_one(tmp_path: Path) -> None:
    real = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "oxford-iiit-pet"
    if not real.is_dir():
        pytest.skip("the photographs are not in ../shared/data")
    source = tmp_path / "pets"
    names = sorted(path.stem for path in (real / "annotations" / "xmls").glob("*.xml"))[:6]
    for folder, suffix in (("images", ".jpg"), ("annotations/trimaps", ".png"), ("annotations/xmls", ".xml")):
        (source / folder).mkdir(parents=True)
        for name in names:
            shutil.copyfile(real / folder / f"{name}{suffix}", source / folder / f"{name}{suffix}")
    shutil.copyfile(real / "annotations" / "list.txt", source / "annotations" / "list.txt")
    assert run("verify", "pets", "--source", source).output.endswith("all 6 samples can be read\n")
    photo = source / "images" / f"{names[2]}.jpg"
    photo.write_bytes(photo.read_bytes()[:1000])
    result = run("verify", "pets", "--source", source)
    assert result.exit_code == 2
    assert f"1 of 6 samples cannot be read, the first because of {photo.name}" in result.stderr


def test_preview_draws_all_targets(tmp_path: Path, tiny_plugin: Path) -> None:
    def sheet(spec: str, *options: object) -> np.ndarray:
        path = tmp_path / "sheet.png"
        result = run("preview", spec, "-o", path, "--plugin", tiny_plugin, "--data-dir", tmp_path, *options)
        assert (result.exit_code, result.output) == (0, f"{path}\n"), result.output
        return np.asarray(Image.open(path).convert("RGB")).astype(int)

    def near(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
        return int((np.abs(pixels - np.array(colour)).max(-1) <= 2).sum())

    first = sheet("tiny")
    assert (first == sheet("tiny")).all(), "the same bytes for the same data"
    box = (86, 180, 233)
    assert near(first, box) > 200
    blank = sheet("tiny[blank=train/box]")
    assert near(blank, box) == 0, "a missing box is not drawn"
    assert first.shape == blank.shape
    two = sheet("tiny", "--images", "0,3")
    assert two.shape[1] < first.shape[1] / 2
    assert sheet("tiny", "--images", "0-9").shape[0] > 1.5 * first.shape[0], "nine go into two rows"
    apart = sheet("tiny[apart=true]")
    assert apart.shape[0] > first.shape[0], "tasks with inputs of their own come one after another"
    sheet("relatedness[count=8,features=5]", "--split", "test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "-o", "x.gif"], "-o x.gif: the name of a picture ends with .png or .svg"),
        (
            ["tiny", "-o", "x.png", "--images", "99"],
            "--images: the train split has 24 samples, numbered from 0",
        ),
        (["tiny", "-o", "x.png", "--images", "a"], "--images: up to 64 different numbers such as 0,3,8-10"),
        (["fingers", "-o", "x.png"], "fingers is not in "),
    ],
)
def test_preview_refuses_in_one_line(
    tmp_path: Path, tiny_plugin: Path, arguments: list[str], message: str
) -> None:
    result = run("preview", *arguments, "--plugin", tiny_plugin, "--data-dir", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
