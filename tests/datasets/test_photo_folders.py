"""``office31``, ``officehome`` and ``celeba``: small folders in the official layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mtlbench.config import RunConfig
from mtlbench.data.verify import verify
from mtlbench.errors import MtlbenchError
from mtlbench.experiment import Experiment
from mtlbench.registry import Registry
from mtlbench.testing import check_dataset
from mtlbench.training.report import Silence
from mtlbench_zoo.datasets._domains import Domains
from mtlbench_zoo.datasets.celeba import ATTRIBUTES, CelebA
from mtlbench_zoo.datasets.office31 import Office31
from mtlbench_zoo.datasets.officehome import OfficeHome


def ignore(line: str) -> None:
    """Take a line of a report."""


def photo(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 16, 3), grey, np.uint8)).save(path, "PNG")


def office(folder: Path, cls: type[Domains], images: int = 3, inner: str = "") -> Path:
    """Images of class k are 3 k grey, of each domain a little brighter than those of the one before."""
    for d, domain in enumerate(cls.folders.values()):
        for k in range(cls.classes):
            for i in range(images + d % 2):
                photo(folder / domain / inner / f"class_{k:02d}" / f"frame_{i:04d}.jpg", 3 * k + d)
    return folder


@pytest.mark.parametrize(("cls", "inner"), [(Office31, "images"), (OfficeHome, "")])
def test_every_domain_is_a_task_with_images_of_its_own(
    tmp_path: Path, cls: type[Domains], inner: str
) -> None:
    lines: list[str] = []
    cls.prepare(tmp_path, office(tmp_path / "source", cls, inner=inner), 16, lines.append)
    first = next(iter(cls.folders))
    assert lines[0].startswith(f"split: {cls.classes} train/{first}, ")
    dataset = cls(tmp_path)
    check_dataset(dataset)
    assert verify(dataset)[1] == []
    assert dataset.per_task
    assert [task.name for task in dataset.tasks] == list(cls.folders)
    for d, task in enumerate(cls.folders):
        for name, count in {"train": 1 + d % 2, "val": 1, "test": 1}.items():
            split = dataset.split(name)  # type: ignore[arg-type]
            assert isinstance(split, dict)
            batch = split[task].fetch(torch.arange(len(split[task])))
            labels = batch.targets[task]
            assert torch.bincount(labels).tolist() == [count] * cls.classes
            assert (batch.inputs == (3 * labels + d)[:, None, None, None]).all()


def test_who_is_in_which_split_depends_on_names_alone(tmp_path: Path) -> None:
    parts = Office31.parts(office(tmp_path / "a", Office31, images=6, inner="images"))
    chosen = {split: [item[0] for item in parts[f"{split}/dslr"]] for split in ("train", "val", "test")}
    assert [len(items) for items in chosen.values()] == [31 * 3, 31 * 2, 31 * 2]
    assert len(set().union(*chosen.values())) == 31 * 7
    again = Office31.parts(office(tmp_path / "b", Office31, images=6, inner=""))
    assert {item[0].replace("images/", "") for item in parts["val/dslr"]} == {
        item[0] for item in again["val/dslr"]
    }


def test_a_run_trains_on_domains(tmp_path: Path) -> None:
    Office31.prepare(tmp_path, office(tmp_path / "source", Office31), 16, ignore)
    config = RunConfig(
        arch="hps", weight="pcgrad", data="office31", encoder="conv[width=2]", epochs=1, batch_size=8,
        device="cpu", baseline=False, results=tmp_path / "r", data_dir=tmp_path,
    )  # fmt: skip

    class Watcher(Silence):
        def notice(self, text: str) -> None:
            raise AssertionError(text)

    (result,) = Experiment(config, Registry()).execute(Watcher(), lambda: False)
    assert result.run.record.status == "ok"
    assert set(result.run.record.values["metrics"]) == {"amazon", "dslr", "webcam"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "dslr").rename(f / "slr"), "has no folder 'dslr'"),
        (lambda f: (f / "dslr/class_03").rename(f / "dslr/other"), "'class_03' is not in both amazon and"),
        (lambda f: (f / "amazon/more").mkdir(), "has 32 classes, office31 has 31 in every domain"),
        (lambda f: (f / "dslr/class_03/frame_0000.jpg").write_bytes(b"no"), "frame_0000.jpg: is no image"),
        (lambda f: (f / "dslr/class_03/notes.txt").write_text(""), "notes.txt is no .jpg or .png: remove it"),
        (
            lambda f: [(f / f"amazon/class_03/frame_000{i}.jpg").unlink() for i in (0, 1)],
            "class_03 has 1 images, each of three splits needs one",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_domains_is_one_line(
    tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    source = office(tmp_path / "source", Office31)
    spoil(source)
    with pytest.raises(MtlbenchError) as caught:
        Office31.prepare(tmp_path / "data", source, 16, ignore)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# --- celeba ------------------------------------------------------------------------------------------------


def faces(folder: Path, count: int = 24, inner: tuple[str, str, str] = ("", "", "")) -> Path:
    """Image i has attribute k where the two digits of its grey say so; image 0 is listed nowhere."""
    images, labels, splits = (folder / part for part in inner)
    lines, partition = [str(count), " ".join(ATTRIBUTES)], []
    for i in range(1, count + 1):
        photo(images / "img_align_celeba" / f"{i:06d}.jpg", i)
        signs = " ".join(" 1" if (i >> (k % 3)) & 1 else "-1" for k in range(40))
        lines.append(f"{i:06d}.jpg {signs}")
        partition.append(f"{i:06d}.jpg {0 if i <= count - 8 else 1 if i <= count - 4 else 2}")
    photo(images / "img_align_celeba" / "000000.jpg", 0)
    for path in (labels, splits):
        path.mkdir(parents=True, exist_ok=True)
    (labels / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    (splits / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")
    return folder


@pytest.mark.parametrize("inner", [("", "", ""), ("Img", "Anno", "Eval")])
def test_celeba_has_forty_binary_tasks(tmp_path: Path, inner: tuple[str, str, str]) -> None:
    lines: list[str] = []
    CelebA.prepare(tmp_path, faces(tmp_path / "source", inner=inner), 16, lines.append)
    assert lines == ["split: 16 train, 4 val, 4 test"]
    dataset = CelebA(tmp_path)
    check_dataset(dataset)
    assert verify(dataset)[1] == []
    assert len(dataset.tasks) == len(set(ATTRIBUTES)) == 40
    assert dataset.input_shape == (3, 16, 16)
    split = dataset.split("train")
    assert not isinstance(split, dict)
    batch = split.fetch(torch.arange(16))
    number = batch.inputs[:, 0, 0, 0].long()
    assert number.tolist() == list(range(1, 17))
    for k, name in enumerate(ATTRIBUTES):
        assert (batch.targets[name] == (number >> (k % 3)) & 1).all()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("list_attr_celeba.txt", lambda t: t.replace("Smiling", "Grinning"), "does not name the forty"),
        ("list_attr_celeba.txt", lambda t: t.replace("003.jpg  1", "003.jpg  0"), "line 5: expected"),
        ("list_attr_celeba.txt", lambda t: t[:-4], "line 26: expected an image and forty times -1 or 1"),
        ("list_eval_partition.txt", lambda t: t.replace("003.jpg 0", "003.jpg 3"), "line 3: expected an"),
        ("list_eval_partition.txt", lambda t: t + "000099.jpg 1", "line 25: 000099.jpg is not in list_attr"),
        ("list_eval_partition.txt", lambda t: t.replace("jpg 1", "jpg 2"), "the split 'val' would be empty"),
        ("list_eval_partition.txt", None, "has no 'list_eval_partition.txt', nor has Eval/"),
        ("img_align_celeba/000005.jpg", None, "celeba: train: 000005.jpg: [Errno 2] No such file"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_celeba_is_one_line(
    tmp_path: Path, name: str, change: Callable[[str], str] | None, message: str
) -> None:
    source = faces(tmp_path / "source")
    if change is None:
        (source / name).unlink()
    else:
        (source / name).write_text(change((source / name).read_text()))
    with pytest.raises(MtlbenchError) as caught:
        CelebA.prepare(tmp_path / "data", source, 16, ignore)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
