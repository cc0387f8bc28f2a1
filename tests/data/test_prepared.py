"""The data file: what is written is what runs read, and what is wrong with a file is told in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from mtlbench.contracts import SPLITS
from mtlbench.data.hdf5 import DiskRows, MemoryRows
from mtlbench.data.prepared import PreparedFile, PreparedSplit, Row, write
from mtlbench.data.splits import held_out, in_three, shares
from mtlbench.errors import MtlbenchError

DECLARED: dict[str, dict[str, Any]] = {
    "seg": {"kind": "segmentation", "classes": 3},
    "depth": {"kind": "depth"},
    "normal": {"kind": "normals"},
    "label": {"kind": "classification", "classes": 3},
    "value": {"kind": "regression"},
}


def row(i: int) -> Row:
    draw = np.random.default_rng(i)
    return Row(
        draw.integers(0, 256, (4, 6, 3), dtype=np.uint8),
        {
            "seg": draw.integers(-1, 3, (4, 6)),
            "depth": draw.random((4, 6, 1), dtype=np.float32),
            "normal": draw.standard_normal((4, 6, 3)).astype(np.float16),
            "label": i % 3,
            "value": np.float32(i),
        },
    )


PARTS = {"train": range(6), "val": range(6, 9), "test": range(9, 11)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.h5"
    assert write(path, "a", DECLARED, PARTS, row) == {"train": 6, "val": 3, "test": 2}
    return path


@pytest.mark.parametrize("budget", [2**30, 0])
def test_what_is_written_is_what_is_read(path: Path, budget: int) -> None:
    file = PreparedFile(path, "do this")
    assert file.input_shape == (3, 4, 6)
    assert [task.name for task in file.tasks] == list(DECLARED)
    assert not file.per_task
    split = file.split("val", budget=budget)
    assert isinstance(split, PreparedSplit)
    assert isinstance(split._inputs, MemoryRows if budget else DiskRows)
    assert isinstance(split._targets["label"], MemoryRows)
    batch = split.fetch(torch.tensor([2, 0]))
    for place, i in enumerate((8, 6)):
        expected = row(i)
        assert (batch.inputs[place].numpy() == expected.inputs.transpose(2, 0, 1)).all()
        assert (batch.targets["seg"][place].numpy() == expected.targets["seg"]).all()
        assert (batch.targets["depth"][place].numpy() == expected.targets["depth"].transpose(2, 0, 1)).all()
        assert (batch.targets["normal"][place].numpy() == expected.targets["normal"].transpose(2, 0, 1)).all()
        assert batch.targets["label"][place] == i % 3
        assert batch.targets["value"][place].tolist() == [float(i)]
    assert {name: target.dtype for name, target in batch.targets.items()} == {
        "seg": torch.int64, "depth": torch.float32, "normal": torch.float32,
        "label": torch.int64, "value": torch.float32,
    }  # fmt: skip
    with h5py.File(path, locking=False) as raw:
        assert raw["train/targets/seg"].dtype == np.int8


def change(path: Path, edit: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "r+") as file:
        edit(file)


def swap(name: str, values: Any) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file[name]
        if values is not None:
            file[name] = values

    return edit


def declare(**tasks: Any) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.update(tasks=json.dumps(tasks))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (swap("val", None), "a.h5 has no group 'val'"),
        (swap("val/inputs", None), "has no array 'val/inputs'"),
        (swap("val/inputs", np.zeros((3, 4, 6, 3), np.int32)), "is int32 [3, 4, 6, 3], not uint8"),
        (swap("val/targets/seg", None), "has no array 'val/targets/seg'"),
        (swap("val/targets/seg", np.zeros((3, 4, 5), np.int8)), "is [3, 4, 5], not [3, 4, 6]"),
        (swap("val/targets/seg", np.zeros((2, 4, 6), np.int8)), "is [2, 4, 6], not [3, 4, 6]"),
        (swap("val/targets/label", np.zeros(3)), "'val/targets/label' is float64, not int8, int16"),
        (swap("val/targets/value", np.zeros(3, int)), "'val/targets/value' is int64, not float16"),
        (lambda file: file.attrs.update(version=9), "is not of the format 'mtlbench-data' version 1"),
        (lambda file: file.attrs.update(tasks="{"), "has no attribute 'tasks' with a JSON object"),
        (declare(), "has no attribute 'tasks' with a JSON object"),
        (declare(seg=[]), 'task \'seg\' declares no kind, as in {"kind": "binary"}'),
        (declare(seg={"kind": "segmentations"}), "'segmentations'. Did you mean 'segmentation'"),
        (declare(seg={"kind": "segmentation"}), "a segmentation needs 'classes', an integer from 2"),
        (declare(seg={"kind": "segmentation", "classes": "3"}), "must be an integer from 2, found '3'"),
        (declare(seg={"kind": "depth", "units": "m"}), "a depth has no 'units'. Did you mean 'unit'"),
        (declare(other={"kind": "depth"}), "has no array 'val/targets/other'"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_in_one_line(path: Path, edit: Any, message: str) -> None:
    change(path, edit)
    with pytest.raises(MtlbenchError) as caught:
        PreparedFile(path, "do this").split("val")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_truncated_file_is_told(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(MtlbenchError, match=r"a\.h5 is truncated: do this"):
        PreparedFile(path, "do this")


def test_bytes_of_255_and_other_types_are_understood(path: Path) -> None:
    def edit(file: h5py.File) -> None:
        swap("val/targets/seg", np.full((3, 4, 6), 255, np.uint8))(file)
        swap("val/targets/label", np.array([1, -1, 2], ">i4"))(file)
        swap("val/targets/depth", np.ones((3, 4, 6), ">f8"))(file)
        swap("val/targets/value", np.ones((3, 1)))(file)

    change(path, edit)
    split = PreparedFile(path, "").split("val")
    assert isinstance(split, PreparedSplit)
    targets = split.fetch(torch.arange(3)).targets
    assert (targets["seg"] == -1).all()
    assert targets["label"].tolist() == [1, -1, 2]
    assert targets["depth"].shape == (3, 1, 4, 6)
    assert targets["value"].shape == (3, 1)


def test_tasks_may_have_inputs_of_their_own(tmp_path: Path) -> None:
    declared = {"a": {"kind": "binary"}, "b": {"kind": "classification", "classes": 4}}
    parts = {
        f"{split}/{task}": [(task, i) for i in range(2 + (task == "a"))]
        for split in SPLITS
        for task in declared
    }
    write(
        tmp_path / "t.h5",
        "t",
        declared,
        parts,
        lambda item: Row(np.zeros((4, 4, 1), np.uint8), {item[0]: item[1] % 2}),
    )
    file = PreparedFile(tmp_path / "t.h5", "")
    assert file.per_task
    split = file.split("train")
    assert isinstance(split, dict)
    assert {name: len(part) for name, part in split.items()} == {"a": 3, "b": 2}
    assert list(split["b"].fetch(torch.arange(2)).targets) == ["b"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"label": 3}, "targets/label must be labels in 0..2 (-1: none), found 3..3"),
        ({"seg": np.full((4, 6), -2)}, "targets/seg must be labels in 0..2"),
        ({"depth": np.zeros((4, 5, 1), np.float32)}, "have the shape (4, 5, 1), those before (4, 6, 1)"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_are_named_and_nothing_is_written(
    tmp_path: Path, bad: Any, message: str
) -> None:
    def read(i: int) -> Row:
        good = row(i)
        return good if i != 7 else Row(good.inputs, good.targets | bad)

    with pytest.raises(MtlbenchError) as caught:
        write(tmp_path / "a.h5", "a", DECLARED, PARTS, read)
    assert message in str(caught.value)
    assert "a: val: 7" in str(caught.value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(MtlbenchError, match="the split 'val' would be empty"):
        write(tmp_path / "a.h5", "a", DECLARED, PARTS | {"val": []}, row)


def test_splits_depend_on_names_alone() -> None:
    names = [f"n{i}" for i in range(33)]
    train, val, test = in_three(names)
    assert (len(train), len(val), len(test)) == shares(33) == (19, 7, 7)
    assert sorted(train + val + test) == sorted(names)
    assert in_three(reversed(names)) == (train, val, test)
    kept, held = held_out(names)
    assert len(held) == 4
    assert sorted(kept + held) == sorted(names)
    assert kept == sorted(kept, key=names.index)
    assert set(held_out(names[::-1])[1]) == set(held)


@pytest.mark.parametrize("budget", [2**30, 0])
def test_damage_anywhere_is_one_line_or_harmless(path: Path, budget: int) -> None:
    """Bytes changed at random, most of them where the structure of the file is."""
    whole, draw, told = path.read_bytes(), np.random.RandomState(7), []
    for number in range(60):
        damaged = bytearray(whole)
        for place in draw.randint(9000, size=20):
            damaged[place] = draw.randint(256)
        other = path.with_name(f"{number}.h5")  # HDF5 would take the same path for the file it has open
        other.write_bytes(damaged)
        try:
            file = PreparedFile(other, "do this")
            for name in SPLITS:
                split = file.split(name, budget=budget)
                assert isinstance(split, PreparedSplit)
                split.fetch(torch.arange(len(split)))
        except MtlbenchError as error:
            told.append(str(error))
    assert 10 < len(told) < 60
    assert "\n" not in "".join(told)
