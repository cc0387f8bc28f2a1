"""The dataset ``fingers``: folders in the published layout, and the real images where they are at hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mtlbench.cli import cli
from mtlbench.errors import MtlbenchError
from mtlbench.testing import check_dataset
from mtlbench_zoo.datasets.fingers import Fingers

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "fingers"


def ignore(line: str) -> None:
    """Take a line of a report."""


def published(folder: Path, train: int = 24, test: int = 12) -> Path:
    """Make images whose grey value says what they are."""
    for part, count in (("train", train), ("test", test)):
        (folder / part).mkdir(parents=True)
        for i in range(count):
            fingers, hand = i % 6, i // 6 % 2
            grey = np.full((32, 32), 20 * fingers + 10 * hand, np.uint8)
            Image.fromarray(grey).save(folder / part / f"{part}{i:04d}_{fingers}{'LR'[hand]}.png")
    return folder


def test_images_have_the_labels_of_their_names(tmp_path: Path) -> None:
    lines: list[str] = []
    Fingers.prepare(tmp_path, published(tmp_path / "source"), 32, lines.append)
    assert lines == ["split: 21 train, 3 val, 12 test"]
    dataset = Fingers(tmp_path)
    check_dataset(dataset)
    assert dataset.input_shape == (1, 32, 32)
    assert dataset.encoder == "conv[depth=5]"
    for name in ("train", "val", "test"):
        split = dataset.split(name)
        assert not isinstance(split, dict)
        batch = split.fetch(torch.arange(len(split)))
        expected = 20 * batch.targets["count"] + 10 * batch.targets["hand"]
        assert (batch.inputs == expected[:, None, None, None]).all()


def test_how_labels_follow_a_mirror_image_is_not_up_to_the_file(tmp_path: Path) -> None:
    path = Fingers.prepare(tmp_path, published(tmp_path / "source"), 32, ignore)
    with h5py.File(path, "r+") as file:
        declared = json.loads(file.attrs["tasks"])
        del declared["hand"]["mirror"]  # as a file of before has it
        file.attrs["tasks"] = json.dumps(declared)
    assert [task.mirror for task in Fingers(tmp_path).tasks] == [True, (1, 0)]


def test_other_sizes_are_made_by_scaling(tmp_path: Path) -> None:
    Fingers.prepare(tmp_path, published(tmp_path / "source"), 16, ignore)
    Fingers.prepare(tmp_path, tmp_path / "source", 64, ignore)
    assert Fingers(tmp_path, 16).input_shape == (1, 16, 16)
    with pytest.raises(
        MtlbenchError, match=r"several sizes \(16, 64\): say which, such as fingers\[size=16\]"
    ):
        Fingers(tmp_path)
    with pytest.raises(MtlbenchError, match=r"fingers of size 32 is not in .* \(prepared there: 16, 64\)"):
        Fingers(tmp_path, 32)
    with pytest.raises(MtlbenchError, match="size must be a multiple of 16"):
        Fingers(tmp_path, 30)


def remove(folder: Path) -> None:
    for path in (folder / "test").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: (f / "train" / "x_6L.png").write_bytes(b""),
            "x_6L.png (and 0 more) is not named NAME_<0-5>",
        ),
        (lambda f: (f / "test" / "notes.txt").write_text(""), "notes.txt (and 0 more) is not named"),
        (lambda f: (f / "train" / "x_1L.png").write_bytes(b"no"), "fingers: train: x_1L.png: is no image"),
        (
            lambda f: (f / "test" / "test0000_0L.png").write_bytes(
                (f / "test" / "test0000_0L.png").read_bytes()[:45]
            ),
            "fingers: test: test0000_0L.png: ",
        ),
        (remove, "the split 'test' would be empty"),
        (lambda f: (f / "test").rename(f / "tests"), "has no folder 'test'"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    source = published(tmp_path / "source")
    spoil(source)
    with pytest.raises(MtlbenchError) as caught:
        Fingers.prepare(tmp_path / "data", source, 32, ignore)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "data").glob("*"))


def test_nothing_prepared_says_what_to_get_and_run(tmp_path: Path) -> None:
    with pytest.raises(
        MtlbenchError, match=r"nothing is prepared there\)\. Get the archive .* Run: mtlbench"
    ):
        Fingers(tmp_path)
    result = CliRunner().invoke(cli, ["data", "prepare", "fingers", "--data-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert "fingers cannot be downloaded by mtlbench; Get the archive" in result.stderr
    with pytest.raises(MtlbenchError, match="there is no such folder"):
        Fingers.prepare(tmp_path, tmp_path / "none", None, ignore)


def test_a_run_reads_it(tmp_path: Path) -> None:
    Fingers.prepare(tmp_path, published(tmp_path / "source"), 32, ignore)
    command = ["run", "--data", "fingers", "--epochs", "1", "--no-baseline", "--results", str(tmp_path / "r")]
    result = CliRunner().invoke(cli, [*command, "--data-dir", str(tmp_path), "--quiet", "--json"])
    assert result.exit_code == 0, result.output
    assert '"title": "fingers"' in result.stdout


@pytest.mark.real
def test_the_real_images(tmp_path: Path) -> None:
    if not REAL.is_dir():
        pytest.skip("the real images are not in ../shared/data")
    lines: list[str] = []
    Fingers.prepare(tmp_path, REAL, 32, lines.append)
    assert lines == ["split: 2700 train, 300 val, 600 test"]
    dataset = Fingers(tmp_path)
    split = dataset.split("train")
    assert not isinstance(split, dict)
    batch = split.fetch(torch.arange(len(split)))
    assert set(batch.targets["count"].tolist()) == set(range(6))
    assert batch.targets["hand"].float().mean() == pytest.approx(0.5, abs=0.05)
    assert batch.inputs.float().std() > 20
