"""``nyuv2`` and ``cityscapes``: small folders in the published layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.io import savemat

from mtlbench.cli import cli
from mtlbench.contracts import SPLITS, Map, Split
from mtlbench.data.prepared import PreparedDataset
from mtlbench.data.verify import verify
from mtlbench.errors import MtlbenchError
from mtlbench.metrics import abs_error, angle_mean, iou, rel_error
from mtlbench.testing import check_dataset
from mtlbench_zoo.datasets.cityscapes import Cityscapes
from mtlbench_zoo.datasets.nyuv2 import NYUv2


def ignore(line: str) -> None:
    """Take a line of a report."""


def save(folder: Path, kind: str, number: int, values: Any) -> None:
    (folder / kind).mkdir(parents=True, exist_ok=True)
    np.save(folder / kind / f"{number}.npy", values)


def nyu(folder: Path, train: int = 20, test: int = 4, height: int = 48) -> Path:
    """Scene i of train has depth i + 1, label i modulo 13 and a grey of i; quarters of it have no labels."""
    width = height * 4 // 3
    for part, count in (("train", train), ("val", test)):
        for i in range(count):
            label = np.full((height, width), i % 13, np.float64)
            depth = np.full((height, width, 1), i + 1, np.float32)
            normal = np.zeros((height, width, 3), np.float32)
            normal[..., i % 3] = -1
            label[: height // 2, : width // 2] = -1
            depth[: height // 2, width // 2 :] = 0
            normal[height // 2 :, : width // 2] = 0
            image = np.full((height, width, 3), i / 255, np.float32)
            for kind, values in {"image": image, "label": label, "depth": depth, "normal": normal}.items():
                save(folder / part, kind, i, values)
    return folder


def city(folder: Path, labels: dict[str, int], train: int = 20, test: int = 4) -> Path:
    for part, count in (("train", train), ("val", test)):
        for i in range(count):
            save(folder / part, "image", i, np.full((16, 32, 3), i / 20))
            depth = np.full((16, 32, 1), 0.01 * (i + 1))
            depth[0] = 0
            save(folder / part, "depth", i, depth)
            for kind, classes in labels.items():
                label = np.tile(np.arange(32) % (classes + 1) - 1.0, (16, 1))
                save(folder / part, kind, i, label)
    return folder


def everything(split: Any) -> Any:
    assert isinstance(split, Split)
    return split.fetch(torch.arange(len(split)))


def test_nyuv2_has_the_published_tasks_and_masks_what_is_invalid(tmp_path: Path) -> None:
    lines: list[str] = []
    NYUv2.prepare(tmp_path, nyu(tmp_path / "source"), 48, lines.append)
    assert lines == ["split: 18 train, 2 val, 4 test"]
    dataset = NYUv2(tmp_path)
    check_dataset(dataset)
    assert dataset.input_shape == (3, 48, 64)
    assert {task.name: task.output for task in dataset.tasks} == {
        "segmentation": Map(13), "depth": Map(1), "normals": Map(3)
    }  # fmt: skip
    assert {task.name: [metric.name for metric in task.metrics] for task in dataset.tasks} == {
        "segmentation": ["iou", "pixel_accuracy"],
        "depth": ["abs_error", "rel_error"],
        "normals": ["angle_mean", "angle_median", "within_11.25", "within_22.5", "within_30"],
    }
    seen = []
    for name in ("train", "val"):
        batch = everything(dataset.split(name))
        assert batch.inputs.dtype == torch.uint8
        scene = batch.inputs[:, 0, 0, 0].long()
        seen += scene.tolist()
        assert (batch.inputs == scene[:, None, None, None]).all()
        label, depth, normal = (batch.targets[task] for task in ("segmentation", "depth", "normals"))
        assert (label[:, :24, :32] == -1).all()
        assert (label[:, 24:] == (scene % 13)[:, None, None]).all()
        assert depth[:, 0, :24, 32:].isnan().all()
        assert (depth[:, 0, 24:] == (scene + 1)[:, None, None]).all()
        assert normal[:, :, 24:, :32].isnan().all()
        assert (normal[:, :, :24].norm(dim=1) == 1).all()
        assert (normal[:, :, 0, 0].argmin(1) == scene % 3).all()
    assert sorted(seen) == list(range(20))
    test = everything(dataset.split("test"))
    assert test.inputs[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_losses_and_metrics_of_nyuv2_ignore_what_is_invalid(tmp_path: Path) -> None:
    NYUv2.prepare(tmp_path, nyu(tmp_path / "source"), 48, ignore)
    batch = everything(NYUv2(tmp_path).split("test"))
    depth, normal = batch.targets["depth"], batch.targets["normals"]
    for metric, output, target, expected in (
        (abs_error("m"), depth.nan_to_num(1e6) + 0.5, depth, 0.5),
        (rel_error(), depth.nan_to_num(1e6) * 1.25, depth, 0.25),
        (angle_mean(), normal.nan_to_num(7), normal, 0.0),
    ):
        accumulator = metric.make()
        accumulator.update(output, target)
        assert float(accumulator.compute()) == pytest.approx(expected, abs=1e-5)
    labels = batch.targets["segmentation"]
    logits = torch.nn.functional.one_hot(labels.clamp(min=0), 13).movedim(-1, 1).float()
    accumulator = iou(13).make()
    accumulator.update(logits, labels)
    assert float(accumulator.compute()) == 1  # nine of the thirteen classes are absent


def test_a_run_records_every_metric(tmp_path: Path) -> None:
    NYUv2.prepare(tmp_path, nyu(tmp_path / "source"), 48, ignore)
    command = ["run", "--data", "nyuv2", "--encoder", "conv[width=2]", "--epochs", "1", "--no-baseline"]
    where = ["--data-dir", str(tmp_path), "--results", str(tmp_path / "r"), "--quiet", "--json"]
    result = CliRunner().invoke(cli, [*command, *where])
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout.splitlines()[0])["metrics"]
    assert sorted(metrics["normals"]) == [
        "angle_mean", "angle_median", "within_11.25", "within_22.5", "within_30"
    ]  # fmt: skip
    assert 0 < metrics["normals"]["angle_mean"] < 180
    assert metrics["depth"]["abs_error"] > 0


def test_other_sizes_take_the_nearest_pixel(tmp_path: Path) -> None:
    source = nyu(tmp_path / "source")
    half = np.zeros((48, 64, 1), np.float32)
    half[::2] = 1
    half[1::2] = 2
    save(source / "val", "depth", 0, half)
    NYUv2.prepare(tmp_path, source, 96, ignore)
    batch = everything(NYUv2(tmp_path).split("test"))
    assert batch.inputs.shape[1:] == (3, 96, 128)
    assert set(batch.targets["depth"][0].unique().tolist()) == {1.0, 2.0}
    assert batch.targets["normals"].shape[1:] == (3, 96, 128)


def official(folder: Path, count: int = 15) -> Path:
    """The official file in small, its axes as MATLAB leaves them, with split and mappings beside it.

    Scene i (from 0) has a grey of i in columns right of the first and 200 in it, depth i + 1 but for the
    first row. Label 0 in the first row, 1 in the second, 1 + (i // 3) modulo 3 below. Labels 1..3 are classes
    40, 2 and none of 40, and these 13 and 1 of 13.
    """
    folder.mkdir(exist_ok=True)
    images = np.empty((count, 3, 64, 48), np.uint8)  # [N, C, W, H]
    images[:] = np.arange(count)[:, None, None, None]
    images[:, :, 0] = 200
    depths = np.empty((count, 64, 48), np.float32)
    depths[:] = np.arange(count)[:, None, None] + 1
    depths[:, :, 0] = 0
    labels = np.empty((count, 64, 48), np.uint16)
    labels[:] = np.arange(count)[:, None, None] // 3 % 3 + 1
    labels[:, :, 0], labels[:, :, 1] = 0, 1
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        for name, values in {"images": images, "rawDepths": depths, "labels": labels}.items():
            file[name] = values
        file["depths"] = np.full_like(depths, 9)
    numbers = np.arange(1, count + 1)[:, None]
    savemat(folder / "splits.mat", {"trainNdxs": numbers[::3], "testNdxs": numbers[1::3]})
    savemat(folder / "classMapping40.mat", {"mapClass": np.array([[40, 2, 0]], np.float64)})
    thirteen = np.arange(40)[None] % 13
    thirteen[0, 39], thirteen[0, 1] = 13, 1
    inner = {"labels13": thirteen.astype(np.uint8), "classes13": np.array([["a"]], object)}
    savemat(folder / "class13Mapping.mat", {"classMapping13": inner})
    return folder


def test_the_official_file_gives_13_classes_and_measured_depth(tmp_path: Path) -> None:
    lines: list[str] = []
    source = official(tmp_path / "source")
    NYUv2.prepare(tmp_path, source / "nyu_depth_v2_labeled.mat", 48, lines.append)
    assert lines == ["split: 4 train, 1 val, 5 test"]
    dataset = NYUv2(tmp_path)
    check_dataset(dataset)
    assert dataset.input_shape == (3, 48, 64)
    assert [task.name for task in dataset.tasks] == ["segmentation", "depth"]
    splits = {name: everything(dataset.split(name)) for name in SPLITS}
    scenes = {name: batch.inputs[:, 0, 0, 1].tolist() for name, batch in splits.items()}
    assert sorted(scenes["train"] + scenes["val"]) == [0, 3, 6, 9, 12]
    assert scenes["test"] == [1, 4, 7, 10, 13]
    for name, batch in splits.items():
        label, depth = batch.targets["segmentation"], batch.targets["depth"]
        assert (batch.inputs[..., 0] == 200).all()
        assert (label[:, 0] == -1).all()
        assert depth[:, :, 0].isnan().all()
        for scene, found, measured in zip(scenes[name], label, depth, strict=True):
            assert (batch.inputs[scenes[name].index(scene), :, :, 1:] == scene).all()
            assert (found[1] == 12).all()
            assert (found[2:] == [12, 0, -1][scene // 3 % 3]).all()  # 13 and 1 of 13, from 0 on; none
            assert (measured[0, 1:] == scene + 1).all()
    NYUv2.prepare(tmp_path / "half", source, 32, ignore)
    assert NYUv2(tmp_path / "half").input_shape[1] == 32
    report = NYUv2.check_source(source, ignore)
    assert report == 10


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no split": (lambda f: (f / "splits.mat").unlink(), "has no splits.mat: beside nyu_depth_v2_labeled.mat"),
    "no mapping": (lambda f: (f / "class13Mapping.mat").unlink(), "has no class13Mapping.mat"),
    "truncated": (
        lambda f: (f / "nyu_depth_v2_labeled.mat").write_bytes(b"MATLAB 7.3"), "is damaged or no HDF5 file"
    ),
    "a scene too many": (
        lambda f: savemat(f / "splits.mat", {"trainNdxs": [[1], [99]], "testNdxs": [[2]]}),
        "each number must be in 1..15, once",
    ),
    "a scene twice": (
        lambda f: savemat(f / "splits.mat", {"trainNdxs": [[1], [2]], "testNdxs": [[2]]}),
        "each number must be in 1..15, once",
    ),
    "no numbers": (lambda f: savemat(f / "splits.mat", {"trainNdxs": [[1.5]]}), "has no 'trainNdxs' of"),
    "another mapping": (
        lambda f: savemat(f / "classMapping40.mat", {"mapClass": [[41, 2, 3]]}), "must map labels to 0..40"
    ),
    "a label without a class": (
        lambda f: savemat(f / "classMapping40.mat", {"mapClass": [[40, 2]]}), "has label 3, and classMap"
    ),
    "no struct": (
        lambda f: savemat(f / "class13Mapping.mat", {"classMapping13": [[1]]}), "has no 'labels13' of whole"
    ),
    "no matlab": (lambda f: (f / "splits.mat").write_bytes(b"MATLAB?" * 40), "splits.mat cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("spoilt", SPOILT)
def test_what_is_wrong_beside_the_official_file_is_told_in_one_line(spoilt: str, tmp_path: Path) -> None:
    spoil, message = SPOILT[spoilt]
    source = official(tmp_path / "source")
    spoil(source)
    with pytest.raises(MtlbenchError) as caught:
        NYUv2.prepare(tmp_path, source, 48, ignore)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.h5"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "train/depth/3.npy").unlink(), "image/3.npy has no depth/3.npy (1 such scenes)"),
        (lambda f: save(f / "train", "depth", 99, 0), "depth/99.npy has no image/99.npy (1 such scenes)"),
        (lambda f: (f / "val/label").rename(f / "val/labels"), "has no folder 'val/label'"),
        (lambda f: (f / "val/label/x.txt").write_text(""), "x.txt (and 0 more) is not named N.npy"),
        (
            lambda f: (f / "train/label/3.npy").write_bytes((f / "train/label/3.npy").read_bytes()[:500]),
            "train/label/3.npy: cannot be read (",
        ),
        (lambda f: (f / "train/label/3.npy").write_bytes(b""), "train/label/3.npy: cannot be read (No data"),
        (lambda f: save(f / "train", "label", 3, np.zeros((48, 60))), "has the shape [48, 60], not [48, 64]"),
        (lambda f: save(f / "train", "label", 3, np.full((48, 64), 13)), "labels must be whole, in 0..12"),
        (lambda f: save(f / "train", "label", 3, np.full((48, 64), 0.5)), "labels must be whole, in 0..12"),
        (lambda f: save(f / "train", "label", 3, np.full((48, 64), np.nan)), "labels must be whole"),
        (lambda f: save(f / "train", "depth", 3, np.full((48, 64, 1), -1.0)), "finite and not below 0"),
        (lambda f: save(f / "train", "depth", 3, np.full((48, 64, 1), np.inf)), "finite and not below 0"),
        (lambda f: save(f / "train", "normal", 3, np.full((48, 64, 3), np.inf)), "values must be finite"),
        (lambda f: save(f / "train", "image", 3, np.full((48, 64, 3), np.nan)), "values must be in 0..1"),
        (lambda f: save(f / "train", "image", 3, np.full((48, 64, 3), 255.0)), "values must be in 0..1"),
        (lambda f: save(f / "train", "image", 3, np.array(["a"])), "is not an array of numbers"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_scene_is_one_line(
    tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    source = nyu(tmp_path / "source", train=6)
    spoil(source)
    with pytest.raises(MtlbenchError) as caught:
        NYUv2.prepare(tmp_path / "data", source, 48, ignore)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "data").glob("*"))


def test_a_scene_without_any_valid_pixel_is_told_before_training(tmp_path: Path) -> None:
    source = nyu(tmp_path / "source")
    save(source / "val", "depth", 2, np.zeros((48, 64, 1)))
    NYUv2.prepare(tmp_path, source, 48, ignore)
    with pytest.raises(MtlbenchError, match="nyuv2: test split, task 'depth': sample 2 has no label"):
        verify(NYUv2(tmp_path))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [({"label_7": 7}, [7]), ({"label_19": 19}, [19]), ({"label_7": 7, "label_19": 19}, [7, 19]),
     ({"label": 7}, [7]), ({"label": 19}, [19])],
)  # fmt: skip
def test_cityscapes_takes_the_labels_that_are_there(
    tmp_path: Path, labels: dict[str, int], classes: list[Any]
) -> None:
    lines: list[str] = []
    Cityscapes.prepare(tmp_path, city(tmp_path / "source", labels), 16, lines.append)
    assert lines == ["split: 18 train, 2 val, 4 test"]
    for count in classes:
        dataset = Cityscapes(tmp_path, classes=count)
        check_dataset(dataset)
        assert verify(dataset)[1] == []
        assert [(task.name, task.output) for task in dataset.tasks] == [
            ("segmentation", Map(count)), ("depth", Map(1))
        ]  # fmt: skip
        batch = everything(dataset.split("test"))
        assert batch.inputs.shape == (4, 3, 16, 32)
        assert set(batch.targets["segmentation"].unique().tolist()) == set(range(-1, count))
        assert batch.targets["depth"][:, 0, 0].isnan().all()
        assert batch.targets["depth"][2, 0, 5, 5].item() == pytest.approx(0.03)
    for count in {7, 19} - set(classes):
        with pytest.raises(MtlbenchError, match=f"the {count} classes were not prepared"):
            Cityscapes(tmp_path, classes=count)  # type: ignore[arg-type]


def test_cityscapes_without_labels_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MtlbenchError, match=r"has no folder 'train/label_7' \(nor label_19, nor label\)"):
        Cityscapes.prepare(tmp_path, city(tmp_path / "source", {}), 16, ignore)


@pytest.mark.parametrize("cls", [NYUv2, Cityscapes])
def test_nothing_prepared_says_what_to_get(tmp_path: Path, cls: type[PreparedDataset]) -> None:
    with pytest.raises(MtlbenchError, match=r"Get the preprocessed data that .*mtan .* Run: mtlbench data"):
        cls(tmp_path)
