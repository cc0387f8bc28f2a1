"""``table`` and ``hdf5``: anybody's own data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from mtlbench.contracts import Vector
from mtlbench.data.splits import hashed
from mtlbench.data.verify import verify
from mtlbench.errors import MtlbenchError
from mtlbench.registry import Registry
from mtlbench.testing import check_dataset
from mtlbench_zoo.datasets.hdf5 import Hdf5
from mtlbench_zoo.datasets.table import Table

HEADER = "speed,colour,weight,price,brand,doors"


def cars(folder: Path, rows: int = 40, missing: bool = False) -> Path:
    """Make a CSV table; price is twice the weight plus the speed."""
    lines = [HEADER]
    for i in range(rows):
        speed, weight = 100 + i, 1000 + 7 * (i * i % 11) + 0.5
        price = "" if missing and i % 5 == 0 else f"{2 * weight + speed}"
        colour = "NA" if i == 3 else ("red", "blue", "green")[i % 3]
        lines.append(f"{speed},{colour},{'?' if i == 4 else weight},{price},{('A', 'B')[i % 2]},{2 + i % 3}")
    path = folder / "cars.csv"
    path.write_text("\n".join(lines))
    return path


def everything(dataset: Table) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """All rows, in the order of the file."""
    batches = [
        dataset.split(name).fetch(torch.arange(len(dataset.split(name)))) for name in ("train", "val", "test")
    ]  # type: ignore[arg-type]
    count = sum(len(batch.inputs) for batch in batches)
    back = torch.tensor([int(name) for name in hashed(map(str, range(count)))]).argsort()
    targets = {task: torch.cat([b.targets[task] for b in batches])[back] for task in batches[0].targets}
    return torch.cat([batch.inputs for batch in batches])[back], targets


def test_targets_are_classes_or_numbers_by_what_they_hold(tmp_path: Path) -> None:
    dataset = Table(str(cars(tmp_path)), ["price", "brand", "doors"])
    check_dataset(dataset)
    assert verify(dataset)[1] == []
    assert dataset.title == "table (cars.csv)"
    assert dataset.counts() == {"train": 24, "val": 8, "test": 8}
    assert [task.output for task in dataset.tasks] == [Vector(1), Vector(2), Vector(3)]
    assert [task.metrics[0].name for task in dataset.tasks] == ["mae", "accuracy", "accuracy"]
    inputs, targets = everything(dataset)
    assert targets["brand"].tolist() == [i % 2 for i in range(40)]
    assert targets["doors"].tolist() == [i % 3 for i in range(40)]
    # speed, three colours, weight
    assert inputs.shape == (40, 5)
    assert inputs[:4, 1:4].tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert inputs[4, 4] == 0
    regressed = Table(str(cars(tmp_path)), ["doors"], regression=["doors"], ignore=["brand", "price"])
    assert regressed.tasks[0].metrics[0].name == "mae"
    assert regressed.input_shape == (5,)


def test_only_training_rows_decide_the_scale_and_errors_come_in_the_own_unit(tmp_path: Path) -> None:
    dataset = Table(str(cars(tmp_path)), ["price"], ignore=["brand", "doors", "colour", "weight"])
    train = dataset.split("train").fetch(torch.arange(24))
    for values in (train.inputs, train.targets["price"]):
        assert values.mean().item() == pytest.approx(0, abs=1e-5)
        assert values.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    rest = dataset.split("test").fetch(torch.arange(8))
    assert abs(rest.inputs.mean().item()) > 1e-3
    order = [int(name) for name in hashed(map(str, range(40)))]
    prices = np.array([2 * (1000 + 7 * (i * i % 11) + 0.5) + 100 + i for i in order])
    mae = dataset.tasks[0].metrics[0].make()
    mae.update(torch.zeros(8, 1), rest.targets["price"])
    assert float(mae.compute()) == pytest.approx(np.abs(prices[32:] - prices[:24].mean()).mean(), rel=1e-5)


def test_missing_targets_are_masked(tmp_path: Path) -> None:
    dataset = Table(str(cars(tmp_path, missing=True)), ["price", "brand"])
    assert dataset.partial
    check_dataset(dataset)
    _, targets = everything(dataset)
    assert targets["price"][:, 0].isnan().tolist() == [i % 5 == 0 for i in range(40)]


def test_a_column_may_say_the_splits(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    where = ["test", "train", "val", "train", "train", "val", "test", "train"]
    path.write_text("x,y,part\n" + "\n".join(f"{i},{i % 2},{part}" for i, part in enumerate(where)))
    dataset = Table(str(path), ["y"], split="part")
    assert dataset.counts() == {"train": 4, "val": 2, "test": 2}
    assert dataset.input_shape == (1,)
    path.write_text(path.read_text().replace("val", "valid"))
    with pytest.raises(MtlbenchError, match="column 'part' must say train, val or test, found 'valid'"):
        Table(str(path), ["y"], split="part")


def test_npz_and_parquet_give_what_csv_gives(tmp_path: Path) -> None:
    draw = np.random.RandomState(0)
    x, y, kind = draw.randn(30, 3), draw.randn(30), draw.randint(3, size=30)
    names = np.array(["a", "b", "c"])[kind]
    np.savez(tmp_path / "t.npz", x=x, y=y, kind=kind, name=names)
    columns = {f"x{i}": x[:, i] for i in range(3)} | {"y": y, "kind": kind, "name": names}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    rows = zip(*columns.values(), strict=True)
    text = "\n".join(",".join(repr(v.item()) for v in row).replace("'", "") for row in rows)
    (tmp_path / "t.csv").write_text(",".join(columns) + "\n" + text)
    made = [Table(str(tmp_path / f"t.{kind}"), ["y", "kind", "name"]) for kind in ("csv", "npz", "parquet")]
    assert len({dataset.fingerprint() for dataset in made}) == 1
    assert made[0].input_shape == (3,)


@pytest.mark.parametrize(
    ("text", "parameters", "message"),
    [
        ("x,y\n1,2\n", {"targets": ["z"]}, "has no column 'z'. Columns: x, y"),
        ("x,y\n1,2\n", {"targets": []}, "targets must name one column or more"),
        ("x,y\n1,2\n", {"targets": ["y", "y"]}, "each once"),
        ("x,y\n1,2\n", {"targets": ["x", "y"]}, "no features"),
        ("x,y\n1,2\n3\n", {"targets": ["y"]}, "row 2 has 1 values for 2 columns"),
        ("x,x\n1,2\n", {"targets": ["x"]}, "two columns are named 'x'"),
        ("x,y\n", {"targets": ["y"]}, "holds no rows"),
        ("", {"targets": ["y"]}, "holds no rows"),
        ("x,y\n" + "1,2\n" * 9, {"targets": ["y"]}, "target 'y': it has one value only, 2.0"),
        ("x,y\n" + "1,2.5\n" * 9, {"targets": ["y"]}, "target 'y' is the same in all training rows: 2.5"),
        ("x,y\n" + "1,\n" * 9, {"targets": ["y"]}, "no training row has a value of 'y'"),
        ("x,y\n" + "1,a\n1,b\n" * 9, {"targets": ["y"], "regression": ["y"]}, "texts cannot be regressed"),
        ("x,y\ninf,1\n" + "1,0\n" * 9, {"targets": ["y"]}, "row 1 of column 'x' is infinite"),
        ("x,y\n1,2\n", {"targets": ["y"], "fractions": [0.5, 0.5, 0.5]}, "fractions must be three numbers"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_is_one_line(
    tmp_path: Path, text: str, parameters: Any, message: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(MtlbenchError) as caught:
        Table(str(path), **parameters)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK no")
    (tmp_path / "a.parquet").write_bytes(b"PAR no")
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00x")
    np.savez(tmp_path / "b.npz", x=np.zeros(3), y=np.zeros(4))
    np.savez(tmp_path / "c.npz", x=np.zeros((3, 2, 2)))
    for name, message in {
        "a.npz": "cannot be read as NPZ", "a.parquet": "cannot be read as Parquet",
        "a.csv": "cannot be read as CSV", "b.npz": "different lengths: [3, 4]",
        "c.npz": "array 'x' is float64 [3, 2, 2], not a column", "d.csv": "there is no such file",
        "d.txt": "a table must be one of .csv, .npz, .parquet",
    }.items():  # fmt: skip
        with pytest.raises(MtlbenchError) as caught:
            Table(str(tmp_path / name), ["y"])
        assert message in str(caught.value)


def test_too_many_texts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,y\n" + "\n".join(f"n{i},{i % 2}" for i in range(300)))
    with pytest.raises(MtlbenchError, match=r"'id' has 180 different texts, .* ignore=\[id\]"):
        Table(str(path), ["y"])


# --- hdf5 --------------------------------------------------------------------------------------------------


def own_file(path: Path, joint: bool = True, **declared: Any) -> Path:
    """Make a file with plain h5py, as the page on the layout says."""
    draw = np.random.RandomState(0)
    tasks = {"kind": {"kind": "classification", "classes": 3}, "size": {"kind": "regression", "unit": "cm"}}
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["version"] = "mtlbench-data", 1
        file.attrs["tasks"] = json.dumps(declared or tasks)
        for split, count in (("train", 9), ("val", 4), ("test", 5)):
            for part in [split] if joint else [f"{split}/{task}" for task in tasks]:
                file[f"{part}/inputs"] = draw.randint(0, 256, (count, 16, 16, 3)).astype(np.uint8)
                file[f"{part}/targets/kind"] = np.arange(count) % 3
                file[f"{part}/targets/size"] = draw.rand(count)
    return path


@pytest.mark.parametrize("joint", [True, False])
def test_an_own_file_is_a_dataset(tmp_path: Path, joint: bool) -> None:
    dataset = Registry().choose("datasets", f"hdf5[path={own_file(tmp_path / 'my.h5', joint)}]").build()
    check_dataset(dataset)
    assert verify(dataset)[1] == []
    assert dataset.title == "my"
    assert dataset.per_task is not joint
    assert dataset.input_shape == (3, 16, 16)
    assert dataset.tasks[1].metrics[0].unit == "cm"


def test_missing_labels_are_declared_or_refused(tmp_path: Path) -> None:
    path = own_file(tmp_path / "my.h5")
    with h5py.File(path, "r+") as file:
        file["val/targets/size"][2] = np.nan
    with pytest.raises(MtlbenchError, match=r"my: val split, task 'size': sample 2 has no label"):
        verify(Hdf5(str(path)))
    with h5py.File(path, "r+", locking=False) as file:
        file.attrs["tasks"] = json.dumps({"size": {"kind": "regression", "missing": True}})
    assert verify(Hdf5(str(path)))[1] == []


def test_no_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MtlbenchError, match="hdf5: parameter 'path': there is no file"):
        Hdf5("none.h5")
    (tmp_path / "a.h5").write_bytes(b"no")
    with pytest.raises(MtlbenchError, match=r"a\.h5 is damaged or no HDF5 file: see docs/data-schema\.md"):
        Hdf5(str(tmp_path / "a.h5"))
