from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mtlbench.cli.data import data
from mtlbench.contracts import SPLITS, Map, Vector
from mtlbench.data.splits import shares
from mtlbench.data.verify import verify
from mtlbench.errors import MtlbenchError
from mtlbench.registry import Registry
from mtlbench.testing import check_dataset
from mtlbench_zoo.datasets import _pets_sample as drawn
from mtlbench_zoo.datasets import pets
from mtlbench_zoo.datasets._pets_file import Sample, write
from mtlbench_zoo.datasets._pets_in_place import InPlace
from mtlbench_zoo.datasets.pets import Pets, PetsSplit

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
SAMPLE_FINGERPRINT = "be1deca9c2437f07"
"""Of the built-in sample: it may change only together with `drawn.VERSION`."""

XML = (
    "<annotation><object><name>{animal}</name><bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax>"
    "<ymax>{3}</ymax></bndbox></object></annotation>"
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def ignore(line: str) -> None:
    """Take a line of a report."""


def head(folder: Path, name: str, box: tuple[float, ...] = (4, 6, 20, 18), animal: str = "cat") -> None:
    path = folder / "annotations" / "xmls" / f"{name}.xml"
    path.write_text(XML.format(*box, animal=animal))


def official(folder: Path, n: int = 20) -> Path:
    """Make ``n`` photographs of 40 x 30 in the official layout: even ones are cats, odd ones dogs."""
    for part in ("images", "annotations/trimaps", "annotations/xmls"):
        (folder / part).mkdir(parents=True)
    trimap = np.full((30, 40), 2, dtype=np.uint8)
    trimap[5:25, 10:30] = 3
    trimap[8:22, 13:27] = 1
    lines = ["#Image CLASS-ID SPECIES BREED ID"]
    for i in range(n):
        name = f"dog_{i}" if i % 2 else f"Cat_{i}"
        photo = np.full((30, 40, 3), 40 + i, dtype=np.uint8)
        Image.fromarray(photo).save(folder / "images" / f"{name}.jpg")
        Image.fromarray(trimap).save(folder / "annotations" / "trimaps" / f"{name}.png")
        head(folder, name, animal="dog" if i % 2 else "cat")
        lines.append(f"{name} 1 {1 + i % 2} 1")
    (folder / "annotations" / "list.txt").write_text("\n".join(lines))
    return folder


def coursework(folder: Path, counts: tuple[int, int, int] = (5, 2, 3), side: int = 32) -> Path:
    """Make the coursework layout; in row i of every split the animal is the i-th row of pixels."""
    for split, n in zip(SPLITS, counts, strict=True):
        (folder / split).mkdir(parents=True)
        masks = np.zeros((n, side, side, 1), dtype=np.uint8)
        masks[np.arange(n), np.arange(n)] = 1
        arrays = {
            "images": np.full((n, side, side, 3), 7, dtype=np.uint8),
            "masks": masks,
            "bboxes": np.tile([8.0, 4.0, 24.0, 16.0], (n, 1)),
            "binary": (np.arange(n, dtype=np.uint8) % 2)[:, None],
        }
        for kind, values in arrays.items():
            with h5py.File(folder / split / f"{kind}.h5", "w") as file:
                file[kind] = values
    return folder


def replace_array(folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray | None]) -> None:
    path = folder / f"{name}.h5"
    with h5py.File(path, "r+") as file:
        key = path.stem
        values = change(file[key][()])
        del file[key]
        if values is not None:
            file[key] = values


def prepared(tmp_path: Path, size: int = 32, n: int = 20) -> Path:
    """Return a data folder with `n` photographs of this size prepared."""
    source = tmp_path / f"source-{size}"
    Pets.prepare(tmp_path / "data", official(source, n), size, ignore)
    return tmp_path / "data"


# --- the official layout -----------------------------------------------------------------------------------


def test_official_photographs_with_their_labels(tmp_path: Path) -> None:
    lines: list[str] = []
    path = Pets.prepare(tmp_path / "new" / "data", official(tmp_path / "source"), 32, lines.append)
    assert path == tmp_path / "new" / "data" / "pets-32.h5"
    assert lines[-1] == "split: 12 train, 4 val, 4 test"
    dataset = Pets(path.parent)
    assert dataset.title == "pets"
    assert dataset.notice is None
    assert not dataset.partial
    assert not dataset.per_task
    assert dataset.input_shape == (3, 32, 32)
    assert dataset.counts() == {"train": 12, "val": 4, "test": 4}
    seen = set()
    for name in SPLITS:
        split = dataset.split(name)
        batch = split.fetch(torch.arange(len(split)))
        assert batch.inputs.shape == (len(split), 3, 32, 32)
        assert batch.inputs.dtype == torch.uint8
        assert batch.inputs.is_contiguous(memory_format=torch.channels_last)
        brightness = batch.inputs.float().mean((1, 2, 3)).round().long() - 40
        seen |= set(brightness.tolist())
        assert (brightness % 2 == batch.targets["classification"]).all()
        assert batch.targets["classification"].dtype == torch.int64
        masks = batch.targets["segmentation"]
        assert masks.dtype == torch.int64
        assert masks.shape == (len(split), 32, 32)
        # 20 of 30 rows and 20 of 40 columns are border or animal.
        assert masks[0].sum(0).max() in (21, 22)
        assert masks[0].sum(1).max() == 16
        box = torch.tensor([4 / 40, 6 / 30, 20 / 40, 18 / 30])
        torch.testing.assert_close(batch.targets["bbox"], box.expand(len(split), 4))
    assert seen == set(range(20))


def test_quirks_are_handled_and_counted(tmp_path: Path) -> None:
    source = official(tmp_path / "source", 20)
    images, annotations = source / "images", source / "annotations"
    with Image.open(images / "Cat_0.jpg") as image:
        image.convert("P").save(images / "Cat_0.jpg", format="GIF")
    with Image.open(images / "dog_1.jpg") as image:
        image.convert("RGBA").save(images / "dog_1.jpg", format="PNG")
    (images / "Cat_0.mat").write_bytes(b"matlab")
    (annotations / "trimaps" / "._Cat_0.png").write_bytes(b"resource fork")
    kept = [line for line in (annotations / "list.txt").read_text().splitlines() if "Cat_2 " not in line]
    (annotations / "list.txt").write_text("\n".join([*kept, "Cat_99 1 1 1", "torn line"]))
    (annotations / "xmls" / "Cat_4.xml").unlink()
    (annotations / "xmls" / "Cat_6.xml").write_text(
        "<annotation><object><name>cat</name></object></annotation>"
    )
    head(source, "Cat_98")
    (annotations / "trimaps" / "Cat_8.png").unlink()
    head(source, "Cat_10", (-5, 6, 20, 99))
    several = XML.format(1, 1, 9, 9, animal="cat").replace("</object>", "</object><object><bndbox/></object>")
    (annotations / "xmls" / "Cat_12.xml").write_text(several)
    Image.new("L", (20, 15), 2).save(annotations / "trimaps" / "Cat_14.png")
    lines: list[str] = []
    dataset = Pets(Pets.prepare(tmp_path, source, 32, lines.append).parent)
    assert lines[-1] == "split: 10 train, 4 val, 4 test"
    assert lines[1] == "quirks, handled:"
    assert sorted(line.split("x ", 1)[1] for line in lines[2:-1]) == sorted(
        [
            "annotation with several heads (the first is used)",
            "annotation without a head box (not used)",
            "head box that left its photograph (clipped)",
            "head box without a photograph (not used)",
            "hidden file in annotations/trimaps/",
            "image with transparency (PNG RGBA) named .jpg",
            "name in list.txt without a photograph",
            "palette image (GIF P) named .jpg",
            "photograph that list.txt leaves out",
            "photograph with a head box but no trimap (mask missing)",
            "photograph without a head box (not used)",
            "stray .mat file in images/",
            "trimap of another size than its photograph (scaled)",
            "trimap without an animal",
            "trimap without a head box (not used)",
            "unreadable line in list.txt",
        ]
    )
    assert not any(" 0 x" in line for line in lines)
    assert dataset.partial
    batches = [dataset.split(name).fetch(torch.arange(len(dataset.split(name)))) for name in SPLITS]
    masks = torch.cat([batch.targets["segmentation"] for batch in batches])
    missing = (masks == -1).flatten(1)
    assert missing.any(1).sum() == missing.all(1).sum() == 1
    labels = torch.cat([batch.targets["classification"] for batch in batches])
    assert labels.tolist().count(1) == 10
    boxes = torch.cat([batch.targets["bbox"] for batch in batches])
    assert [0.0, pytest.approx(0.2), 0.5, 1.0] in boxes.tolist()


@pytest.mark.parametrize(
    ("animal", "name", "label"), [("dog", "Odd", 1), ("cat", "odd", 0), ("", "odd", 1), ("", "Odd", 0)]
)
def test_an_unlisted_animal_is_what_its_annotation_or_its_name_says(
    tmp_path: Path, animal: str, name: str, label: int
) -> None:
    source = official(tmp_path / "source", 3)
    listed = source / "annotations" / "list.txt"
    listed.write_text(listed.read_text().replace("Cat_0", "Cat_9"))
    (source / "images" / "Cat_0.jpg").rename(source / "images" / f"{name}.jpg")
    (source / "annotations" / "xmls" / "Cat_0.xml").unlink()
    head(source, name, animal=animal)
    path = Pets.prepare(tmp_path, source, 16, ignore)
    with h5py.File(path, locking=False) as file:
        found = dict(zip(file["names"][()].tolist(), file["labels"][()].tolist(), strict=True))
    assert found[name.encode()] == label


@pytest.mark.parametrize("what", ["photo", "trimap", "xml", "box"])
def test_one_broken_file_of_many_is_named_and_skipped(tmp_path: Path, what: str) -> None:
    source = official(tmp_path / "source", 100)
    photo = source / "images" / "Cat_0.jpg"
    if what == "photo":
        photo.write_bytes(photo.read_bytes()[:200])
    elif what == "trimap":
        (source / "annotations" / "trimaps" / "Cat_0.png").write_bytes(b"\x89PNG broken")
    elif what == "xml":
        (source / "annotations" / "xmls" / "Cat_0.xml").write_text("<annotation><object>")
    else:
        head(source, "Cat_0", (30, 6, 20, 18))
    lines: list[str] = []
    Pets.prepare(tmp_path, source, 16, lines.append)
    assert sum("broken, skipped: Cat_0." in line for line in lines) == 1
    assert lines[-1] == "split: 59 train, 20 val, 20 test"


def test_many_broken_files_are_an_error_and_the_old_file_stays(tmp_path: Path) -> None:
    folder = prepared(tmp_path, 32)
    before = (folder / "pets-32.h5").read_bytes()
    source = tmp_path / "source-32"
    (source / "images" / "Cat_0.jpg").write_bytes(b"broken")
    with pytest.raises(
        MtlbenchError, match=r"more than 1 % of the 20 samples are broken \(Cat_0\.jpg: is no image\)"
    ):
        Pets.prepare(folder, source, 32, ignore)
    assert (folder / "pets-32.h5").read_bytes() == before
    assert names(folder) == ["pets-32.h5"]


def test_who_is_in_which_split_depends_on_the_names_alone(tmp_path: Path) -> None:
    source = official(tmp_path / "source")
    orders = []
    for size in (16, 32):
        with h5py.File(Pets.prepare(tmp_path, source, size, ignore)) as file:
            orders.append(file["names"][()].tolist())
    assert orders[0] == orders[1] != sorted(orders[0])


@pytest.mark.parametrize("n", [3, 4, 5, 6, 296, 3686])
def test_shares(n: int) -> None:
    train, val, test = shares(n)
    assert train + val + test == n
    assert val == test == -(-n // 5)
    assert {296: 176, 3686: 2210}.get(n, train) == train


def test_too_few_photographs_or_missing_parts(tmp_path: Path) -> None:
    with pytest.raises(MtlbenchError, match="too few samples"):
        Pets.prepare(tmp_path, official(tmp_path / "two", 2), 16, ignore)
    source = official(tmp_path / "source")
    (source / "annotations" / "list.txt").unlink()
    with pytest.raises(
        MtlbenchError, match=r"looks like the official layout, but has no annotations/list\.txt"
    ):
        Pets.prepare(tmp_path, source, 16, ignore)
    (source / "annotations" / "list.txt").write_text("nothing of use")
    with pytest.raises(MtlbenchError, match="no line reads NAME CLASS SPECIES BREED"):
        Pets.prepare(tmp_path, source, 16, ignore)


# --- the coursework layout ---------------------------------------------------------------------------------


def test_coursework_keeps_its_splits_and_order(tmp_path: Path) -> None:
    lines: list[str] = []
    dataset = Pets(Pets.prepare(tmp_path, coursework(tmp_path / "source"), 32, lines.append).parent)
    assert lines[-1] == "split: 5 train, 2 val, 3 test"
    batch = dataset.split("test").fetch(torch.tensor([2, 0]))
    assert batch.targets["segmentation"].sum(2).argmax(1).tolist() == [2, 0]
    assert batch.targets["bbox"].tolist() == [[0.25, 0.125, 0.75, 0.5]] * 2
    assert dataset.split("train").fetch(torch.arange(5)).targets["classification"].tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train/images", lambda a: a[..., :1], r"images\.h5: array 'images' is uint8 \[5, 32, 32, 1\]"),
        (
            "train/masks",
            lambda a: a[:4],
            r"masks\.h5: array 'masks' is uint8 \[4, 32, 32, 1\], not uint8 \[5",
        ),
        ("val/bboxes", lambda a: a.astype(int), r"bboxes\.h5: array 'bboxes' is int64"),
        ("test/binary", lambda a: None, r"binary\.h5 has no array 'binary'"),
        ("test/binary", lambda a: a + 2, r"test/binary\.h5 row 0: value 2, a label is 0 or 1"),
        ("test/masks", lambda a: a * 255, r"test/masks\.h5 row 0: value 255, a mask has 0 and 1"),
        ("val/bboxes", lambda a: a * np.nan, r"val/bboxes\.h5 row 0: .* is no box"),
    ],
)
def test_wrong_coursework_files_are_named(
    tmp_path: Path, name: str, change: Callable[[np.ndarray], np.ndarray | None], message: str
) -> None:
    source = coursework(tmp_path / "source")
    replace_array(source, name, change)
    with pytest.raises(MtlbenchError, match=message):
        Pets.prepare(tmp_path / "data", source, 32, ignore)
    assert not list((tmp_path / "data").glob("*"))


def test_broken_coursework_files_are_named(tmp_path: Path) -> None:
    source = coursework(tmp_path / "source")
    path = source / "val" / "masks.h5"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MtlbenchError, match=r"val/masks\.h5 is truncated: get this file again"):
        Pets.prepare(tmp_path, source, 32, ignore)
    path.unlink()
    with pytest.raises(MtlbenchError, match=r"looks like the coursework layout, but has no val/masks\.h5"):
        Pets.prepare(tmp_path, source, 32, ignore)


# --- opening what was prepared -----------------------------------------------------------------------------


def test_sizes(tmp_path: Path) -> None:
    folder = prepared(tmp_path, 32)
    assert Pets(folder).input_shape == (3, 32, 32)
    with pytest.raises(
        MtlbenchError,
        match=r"pets of size 64 is not in .*\(prepared there: 32\); run: mtlbench data prepare pets --size",
    ):
        Pets(folder, 64)
    with pytest.raises(MtlbenchError, match="multiple of 16"):
        Pets(folder, 33)
    prepared(tmp_path, 16)
    assert Pets(folder, 16).input_shape == (3, 16, 16)
    with pytest.raises(MtlbenchError, match=r"several sizes \(16, 32\): say which, such as pets\[size=16\]"):
        Pets(folder)
    with pytest.raises(MtlbenchError, match="nothing is prepared there"):
        Pets(tmp_path / "elsewhere", 64)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("images", None, "has no array 'images'"),
        ("images", np.zeros((20, 16, 16, 3), np.uint8), r"'images' is uint8 \[20, 16, 16, 3\], not"),
        (
            "masks",
            np.zeros((19, 32, 32), np.uint8),
            r"'masks' is uint8 \[19, 32, 32\], not uint8 \[20, 32, 32\]",
        ),
        ("boxes", np.zeros((20, 4)), "'boxes' is float64"),
        ("boxes", np.zeros((20, 4), np.float32), "boxes must have 0 <= min < max <= 1"),
        ("labels", np.full(20, 2, np.uint8), "labels must be 0 or 1"),
        ("split", np.zeros(20, np.uint8), "split must hold 0, 1 and 2"),
        ("split", np.arange(20, dtype=np.uint8) % 3, "split must be sorted"),
        ("format", "else", "is not of the format 'mtlbench-pets' version 1"),
    ],
)
def test_a_wrong_file_is_named_with_the_command_that_repairs_it(
    tmp_path: Path, key: str, value: np.ndarray | str | None, message: str
) -> None:
    folder = prepared(tmp_path, 32)
    with h5py.File(folder / "pets-32.h5", "r+") as file:
        if isinstance(value, str):
            file.attrs[key] = value
        else:
            del file[key]
            if value is not None:
                file[key] = value
    with pytest.raises(MtlbenchError, match=message) as caught:
        Pets(folder)
    assert str(folder / "pets-32.h5") in str(caught.value)
    assert "mtlbench data prepare pets --size 32" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_and_foreign_files_are_named(tmp_path: Path) -> None:
    folder = prepared(tmp_path, 32)
    path = folder / "pets-32.h5"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(
        MtlbenchError, match=r"pets-32\.h5 is truncated: run: mtlbench data prepare pets --size 32"
    ):
        Pets(folder)
    path.write_text("no HDF5")
    with pytest.raises(
        MtlbenchError, match=r"pets-32\.h5 is damaged or no HDF5 file: run: mtlbench data prepare"
    ):
        Pets(folder)


def test_rows_from_disk_and_from_memory_are_the_same(tmp_path: Path) -> None:
    dataset = Pets(prepared(tmp_path, 32))
    indices = torch.tensor([3, 0, 3])
    held, read = (PetsSplit(dataset._file, "val", budget).fetch(indices) for budget in (2**31, 0))
    assert torch.equal(held.inputs, read.inputs)
    for name, target in held.targets.items():
        assert torch.equal(target, read.targets[name])


def test_tasks_fit_the_batches(tmp_path: Path) -> None:
    dataset = Pets(prepared(tmp_path, 32))
    batch = dataset.split("val").fetch(torch.arange(4)).to(torch.device("cpu"))
    assert [task.name for task in dataset.tasks] == ["segmentation", "classification", "bbox"]
    assert batch.inputs.max() <= 1
    for task in dataset.tasks:
        assert isinstance(task.output, Map | Vector)
        shape = (
            (4, task.output.size) if isinstance(task.output, Vector) else (4, task.output.channels, 32, 32)
        )
        output = torch.rand(shape, requires_grad=True)
        assert task.loss(output, batch.targets[task.name]).isfinite()
        for metric in task.metrics:
            accumulator = metric.make()
            accumulator.update(output.detach(), batch.targets[task.name])
            assert accumulator.compute().isfinite()


# --- killed, interrupted, concurrent -----------------------------------------------------------------------


def run_python(code: str, *arguments: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)])


def test_a_killed_prepare_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    folder = prepared(tmp_path, 32)
    before = (folder / "pets-32.h5").read_bytes()
    slow = (
        "import sys, time; from pathlib import Path\n"
        "from mtlbench_zoo.datasets import _pets_official as o\n"
        "from mtlbench_zoo.datasets.pets import Pets\n"
        "read = o.read_photo\n"
        "o.read_photo = lambda *a: (time.sleep(0.5), read(*a))[1]\n"
        "Pets.prepare(Path(sys.argv[1]), Path(sys.argv[2]), 32, print)\n"
    )
    process = run_python(slow, folder, tmp_path / "source-32")
    deadline = time.monotonic() + 60
    while not (leftovers := list(folder.glob(".pets-32.h5.*.tmp"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(leftovers) == 1
    assert (folder / "pets-32.h5").read_bytes() == before
    assert Pets(folder).counts() == {"train": 12, "val": 4, "test": 4}
    Pets.prepare(folder, tmp_path / "source-32", 32, ignore)
    assert names(folder) == ["pets-32.h5"]


def test_an_interrupted_prepare_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = official(tmp_path / "source")
    photos = itertools.count()
    read = pets.Official._read

    def interrupted(self: pets.Official, name: str, size: int) -> Sample | None:
        if next(photos) == 7:
            raise KeyboardInterrupt
        return read(self, name, size)

    monkeypatch.setattr(pets.Official, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Pets.prepare(tmp_path / "data", source, 32, ignore)
    assert not names(tmp_path / "data")


def test_a_disk_that_takes_no_more_ends_in_one_line_and_not_in_a_crash(tmp_path: Path) -> None:
    """The system's own limit on the size of a file: everything below Python fails as on a full disk."""
    source = official(tmp_path / "source")
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from mtlbench.errors import MtlbenchError\n"
        "from mtlbench_zoo.datasets.pets import Pets\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
        "try: Pets.prepare(Path(sys.argv[1]), Path(sys.argv[2]), 32, lambda line: None)\n"
        "except MtlbenchError as error: sys.exit(2 if 'cannot write' in str(error) else 1)\n"
    )
    assert run_python(code, tmp_path / "data", source).wait() == 2
    assert names(tmp_path / "data") == []


# --- the built-in sample -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "data"
    Pets(folder)
    return folder


def test_without_prepared_data_the_sample_is_drawn_once(sample_folder: Path) -> None:
    path = sample_folder / "pets-sample-64.h5"
    before = path.stat().st_mtime_ns
    dataset = Pets(sample_folder)
    assert path.stat().st_mtime_ns == before
    assert dataset.title == "pets (built-in sample)"
    assert dataset.notice is not None
    assert "mtlbench data prepare pets" in dataset.notice
    assert dataset.counts() == {"train": 600, "val": 200, "test": 200}
    assert names(sample_folder) == ["pets-sample-64.h5"]


def test_the_sample_is_pinned(sample_folder: Path) -> None:
    assert Pets(sample_folder).fingerprint() == SAMPLE_FINGERPRINT


def test_a_drawing_is_the_same_at_every_call(sample_folder: Path) -> None:
    with h5py.File(sample_folder / "pets-sample-64.h5", locking=False) as file:
        for index in range(0, 1000, 77):
            drawing = drawn.draw(index)
            assert (drawing.image == file["images"][index]).all()
            assert (drawing.mask == file["masks"][index]).all()
            assert np.array_equal(np.float32(drawing.box), file["boxes"][index])
            assert drawing.label == file["labels"][index] == index % 2


def test_the_sample_is_balanced_and_neither_trivial_nor_degenerate(sample_folder: Path) -> None:
    split = Pets(sample_folder).split("train")
    batch = split.fetch(torch.arange(len(split)))
    assert batch.targets["classification"].float().mean() == 0.5
    share = batch.targets["segmentation"].float().mean((1, 2))
    assert 0.15 < share.mean() < 0.4
    assert share.min() > 0.02
    boxes = batch.targets["bbox"]
    assert ((boxes[:, 2:] - boxes[:, :2]) > 0.1).all()
    # Colours do not tell the classes apart: the mean colour of cats and dogs differs by less than 3 %.
    colour = batch.inputs.float().mean((2, 3)) / 255
    dogs = batch.targets["classification"] == 1
    assert (colour[dogs].mean(0) - colour[~dogs].mean(0)).abs().max() < 0.03


def test_a_sample_of_another_version_is_drawn_again(
    sample_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OldSample(pets.DrawnSample):
        layout = "built-in sample, version 0"

    monkeypatch.setattr(drawn, "COUNTS", (2, 1, 1))
    write(tmp_path / "pets-sample-64.h5", "old", OldSample(), 64)
    dataset = Pets(tmp_path)
    assert dataset._file.attributes["layout"] == f"built-in sample, version {drawn.VERSION}"


def test_a_broken_sample_says_how_to_get_another(tmp_path: Path) -> None:
    (tmp_path / "pets-sample-64.h5").write_bytes(b"\x89HDF\r\n\x1a\nbroken")
    with pytest.raises(MtlbenchError, match=r"pets-sample-64\.h5 .*delete it \(it is drawn again\)"):
        Pets(tmp_path)


def test_two_processes_may_draw_the_sample_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from mtlbench_zoo.datasets import _pets_sample as s\n"
        "from mtlbench_zoo.datasets.pets import Pets\n"
        "s.COUNTS = (20, 10, 10)\n"
        "assert Pets(Path(sys.argv[1])).counts() == {'train': 20, 'val': 10, 'test': 10}\n"
    )
    processes = [run_python(code, tmp_path) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert names(tmp_path) == ["pets-sample-64.h5"]


def test_prepared_photographs_win_over_the_sample(sample_folder: Path, tmp_path: Path) -> None:
    folder = prepared(tmp_path, 32)
    (folder / "pets-sample-64.h5").write_bytes((sample_folder / "pets-sample-64.h5").read_bytes())
    assert Pets(folder).title == "pets"


# --- the command -------------------------------------------------------------------------------------------


def prepare(*arguments: object) -> str:
    result = CliRunner().invoke(data, ["prepare", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def plugin(tmp_path: Path) -> Path:
    """Return a plugin file that offers `Pets`, for a checkout that is not installed."""
    path = tmp_path / "plugin.py"
    path.write_text(
        "from mtlbench_zoo.datasets.pets import Pets\n\n\nclass MyPets(Pets):\n    'Pets again.'\n"
    )
    return path


def test_the_command_prints_what_it_found(tmp_path: Path) -> None:
    source = official(tmp_path / "source")
    (source / "images" / "a.mat").write_bytes(b"")
    folder = tmp_path / "data"
    out = prepare(
        "my-pets", "--source", source, "--size", 32, "--data-dir", folder, "--plugin", plugin(tmp_path)
    )
    assert "found: official Oxford-IIIT Pet layout, 20 photographs, 20 of them with a head box" in out
    assert "1 x stray .mat file in images/" in out
    assert "split: 12 train, 4 val, 4 test" in out
    assert f"ready: {folder / 'pets-32.h5'}" in out


def test_the_command_refuses_other_folders(tmp_path: Path) -> None:
    for source, message in (
        (tmp_path, "neither the official layout"),
        (tmp_path / "x", "there is no such folder"),
    ):
        with pytest.raises(MtlbenchError, match=message):
            prepare("my-pets", "--source", source, "--plugin", plugin(tmp_path))


def test_the_command_module_imports_click_alone() -> None:
    code = (
        "import sys, mtlbench.cli.data, mtlbench.data.folder\n"
        "heavy = {'torch', 'numpy', 'h5py', 'PIL', 'rich', 'pooch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    assert run_python(code).wait() == 0


def test_without_a_source_the_official_archives_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = official(tmp_path / "site")
    asked: list[tuple[list[str], str]] = []

    def download(urls: list[str], checksum: str, folder: Path) -> Path:
        asked.append((urls, checksum))
        name = urls[0].rsplit("/", 1)[1]
        with tarfile.open(folder / name, "w:gz") as tar:
            part = name.removesuffix(".tar.gz")
            tar.add(site / part, part)
        return folder / name

    monkeypatch.setattr(pets, "download", download)
    path = Pets.prepare(tmp_path / "data", None, None, ignore)
    assert path.name == "pets-128.h5"
    assert Pets(path.parent).counts() == {"train": 12, "val": 4, "test": 4}
    assert [checksum for _, checksum in asked] == list(pets.ARCHIVES.values())
    assert asked[0][0][0] == "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz"
    kept = sorted(p.name for p in (tmp_path / "data" / "downloads" / "oxford-iiit-pet").iterdir())
    assert kept == [".lock", "annotations.tar.gz", "images.tar.gz"]


# --- the real photographs ----------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.skipif(not (REAL / "oxford-iiit-pet").is_dir(), reason="needs ../shared/data/oxford-iiit-pet")
def test_real_photographs_in_the_official_layout(tmp_path: Path) -> None:
    lines: list[str] = []
    dataset = Pets(Pets.prepare(tmp_path, REAL / "oxford-iiit-pet", 64, lines.append).parent)
    assert dataset.counts() == {"train": 176, "val": 60, "test": 60}
    assert not dataset.partial
    assert not any("broken" in line for line in lines)
    found = {line.strip() for line in lines}
    assert found >= {
        "3 x stray .mat file in images/",
        "2 x photograph that list.txt leaves out",
        "1 x palette image (GIF P) named .jpg",
        "1 x image with transparency (PNG RGBA) named .jpg",
        "1 x annotation with several heads (the first is used)",
    }
    batches = [dataset.split(name).fetch(torch.arange(60)) for name in SPLITS]
    shares_of_animal = torch.stack([batch.targets["segmentation"].float().mean() for batch in batches])
    assert ((shares_of_animal > 0.3) & (shares_of_animal < 0.6)).all()
    with h5py.File(tmp_path / "pets-64.h5", locking=False) as file:
        labels = dict(zip(file["names"][()].tolist(), file["labels"][()].tolist(), strict=True))
    assert all(label == (name[:1].islower()) for name, label in labels.items())


@pytest.mark.real
@pytest.mark.skipif(not (REAL / "datasets-oxpet").is_dir(), reason="needs ../shared/data/datasets-oxpet")
def test_real_photographs_in_the_coursework_layout(tmp_path: Path) -> None:
    dataset = Pets(Pets.prepare(tmp_path, REAL / "datasets-oxpet", 64, ignore).parent)
    assert dataset.counts() == {"train": 16, "val": 4, "test": 4}
    batch = dataset.split("test").fetch(torch.tensor([0]))
    with h5py.File(REAL / "datasets-oxpet" / "test" / "bboxes.h5") as file:
        box = file["bboxes"][0] / 256
    np.testing.assert_allclose(batch.targets["bbox"][0], box, rtol=1e-6)


def test_a_target_task_makes_the_others_auxiliary(sample_folder: Path) -> None:
    assert [task.auxiliary for task in Pets(sample_folder).tasks] == [False, False, False]
    dataset = Pets(sample_folder, target="segmentation")
    assert {task.name: task.auxiliary for task in dataset.tasks} == {
        "segmentation": False, "classification": True, "bbox": True
    }  # fmt: skip
    assert dataset.fingerprint() == SAMPLE_FINGERPRINT
    with pytest.raises(MtlbenchError, match="'target' must be one of \"segmentation\""):
        Registry().choose("datasets", "pets[target=segmentations]")


# --- the coursework layout, read in place ------------------------------------------------------------------


def test_coursework_is_read_where_it_lies(tmp_path: Path) -> None:
    source = coursework(tmp_path / "source")
    dataset = Registry().choose("datasets", f"pets[path={source}]").build(data_dir=tmp_path / "data")
    assert verify(dataset)[1] == []
    assert dataset.title == "pets"
    assert dataset.notice is None
    assert dataset.input_shape == (3, 32, 32)
    assert not list((tmp_path / "data").glob("*"))
    Pets.prepare(tmp_path / "data", source, 32, ignore)
    assert Pets(tmp_path / "data").fingerprint() == dataset.fingerprint()
    for budget in (0, 2**30):
        split = PetsSplit(InPlace(source), "test", budget)
        assert split.fetch(torch.tensor([2, 0])).targets["segmentation"].sum(2).argmax(1).tolist() == [2, 0]


@pytest.mark.real
def test_the_real_coursework_files_are_read_where_they_lie(tmp_path: Path) -> None:
    source = Path(__file__).resolve().parents[3] / "shared" / "data" / "datasets-oxpet"
    if not source.is_dir():
        pytest.skip("the real photographs are not in ../shared/data")
    dataset = Pets(tmp_path, path=str(source))
    check_dataset(dataset)
    assert dataset.counts() == {"train": 16, "val": 4, "test": 4}
    Pets.prepare(tmp_path, source, 256, ignore)
    assert Pets(tmp_path).fingerprint() == dataset.fingerprint()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("val/bboxes", lambda a: a * np.nan, r"sample 5: \[nan, nan, nan, nan\] is no box"),
        ("test/masks", lambda a: a * 7, "test split, task 'segmentation': sample 0 has a label"),
        ("train/binary", lambda a: a + 3, "train split, task 'classification': sample 0 has a label outside"),
        ("train/images", lambda a: a[:4], r"masks\.h5: array 'masks' is uint8 \[5, 32, 32, 1\]"),
    ],
)  # fmt: skip
def test_wrong_values_in_place_are_told_before_training(
    tmp_path: Path, name: str, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    source = coursework(tmp_path / "source")
    replace_array(source, name, change)
    with pytest.raises(MtlbenchError, match=message) as caught:
        verify(Pets(tmp_path, path=str(source)))
    assert "\n" not in str(caught.value)


def test_a_place_without_files_or_with_a_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MtlbenchError, match="pets: parameter 'path': there is no folder"):
        Pets(tmp_path, path=str(tmp_path / "none"))
    with pytest.raises(MtlbenchError, match=r"has no train/images\.h5"):
        Pets(tmp_path, path=str(tmp_path))
    with pytest.raises(MtlbenchError, match="files that are read in place keep their own size"):
        Pets(tmp_path, size=64, path=str(coursework(tmp_path / "source")))
