from __future__ import annotations

import errno
import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from mtlbench.atomic import exclusive, replacing, scratch, sweep
from mtlbench.data import hdf5
from mtlbench.data.folder import data_folder
from mtlbench.data.hdf5 import DiskRows, MemoryRows, array, explained, hdf5_writer, open_hdf5
from mtlbench.errors import MtlbenchError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_images(path: Path, n: int = 8, fail_at: int | None = None) -> np.ndarray[Any, Any]:
    images = np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    with hdf5_writer(path) as file:
        file.create("images", (16, 16, 3), "u1")
        file.create("labels", (), "u1")
        for i, image in enumerate(images):
            if i == fail_at:
                raise RuntimeError("stopped")
            file.append(images=image, labels=i)
        file.attributes({"format": "test"})
    return images


def test_what_is_written_can_be_read_and_has_one_chunk_an_image(tmp_path: Path) -> None:
    images = write_images(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        assert (file["images"][()] == images).all()
        assert file["images"].chunks == (1, 16, 16, 3)
        assert file["labels"][()].tolist() == list(range(8))
        assert file.attrs["format"] == "test"
    assert names(tmp_path) == ["a.h5"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="stopped"):
        write_images(path, fail_at=3)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.h5"]


def test_a_full_disk_is_one_line_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `_Tolerant`, HDF5 would crash the interpreter when it exits."""
    path = tmp_path / "a.h5"
    path.write_bytes(b"old")
    room = 4000

    class FullDisk:
        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, data: Any) -> int:
            nonlocal room
            room -= len(data)
            if room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(self._file.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    real = os.fdopen
    monkeypatch.setattr(hdf5.os, "fdopen", lambda *a, **k: FullDisk(real(*a, **k)))
    with pytest.raises(
        MtlbenchError, match=r"cannot write .*a\.h5: No space left on device; make room"
    ) as caught:
        write_images(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.h5"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MtlbenchError, match=r"cannot write .*--data-dir"):
        write_images(tmp_path / "file" / "a.h5")


def test_leftovers_of_dead_writers_are_swept_and_living_ones_are_not(tmp_path: Path) -> None:
    dead, other, living = (tmp_path / name for name in (".a.h5.1.tmp", ".b.h5.1.tmp", ".a.h5.2.tmp"))
    for path in (dead, other, living):
        path.write_bytes(b"half")
    with living.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert sweep(tmp_path, "a.h5") == 1
    assert not dead.exists()
    assert other.exists()
    assert living.exists()


def test_two_writers_of_one_path_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with replacing(path) as first:
        os.write(first, b"first")
        with replacing(path) as second:
            os.write(second, b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["a"]
    umask = os.umask(0o022)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_folder_can_be_locked_once(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path, "busy"),
        pytest.raises(MtlbenchError, match=r"^busy$"),
        exclusive(tmp_path, "busy"),
    ):
        pass
    with exclusive(tmp_path, "busy"):
        pass


def test_scratch_is_empty_and_goes(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "left").write_text("x")
    with scratch(tmp_path / "s") as folder:
        assert not list(folder.iterdir())
    assert not folder.exists()


@pytest.mark.parametrize("keep", [0, 10, 2000, -1])
def test_truncated_files_are_named_with_the_remedy(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.h5"
    write_images(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(MtlbenchError, match=r"a\.h5 is (truncated|damaged or no HDF5 file): do this"):
        open_hdf5(path, "do this")


def test_arrays_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_images(path)
    with open_hdf5(path, "do this") as file:
        assert array(file, path, "images", (None, 16, 16, 3), "u1", "").shape == (8, 16, 16, 3)
        with pytest.raises(MtlbenchError, match=r"no array 'masks' \(it has images, labels\): do this"):
            array(file, path, "masks", (None,), "u1", "do this")
        with pytest.raises(
            MtlbenchError, match=r"'images' is uint8 \[8, 16, 16, 3\], not uint8 \[8, 32, 32, 3\]"
        ):
            array(file, path, "images", (8, 32, 32, 3), "u1", "do this")
        with pytest.raises(MtlbenchError, match=r"'images' is uint8 \[8, 16, 16, 3\], not uint8 \[N\]"):
            array(file, path, "images", (None,), "u1", "do this")
        with pytest.raises(MtlbenchError, match=r"'labels' is uint8 \[8\], not float \[8\]"):
            array(file, path, "labels", (8,), "f", "do this")


@pytest.mark.parametrize("kind", [MemoryRows, DiskRows])
def test_rows_are_taken_in_the_order_asked_for(
    tmp_path: Path, kind: type[MemoryRows] | type[DiskRows]
) -> None:
    images = write_images(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        rows = kind(file["images"], 2, 7)
        assert rows.take(torch.tensor([4, 0, 0])).tolist() == images[[6, 2, 2]].tolist()
        assert rows.take(torch.tensor([], dtype=torch.int64)).shape == (0, 16, 16, 3)
        for outside in (5, -1):
            with pytest.raises(IndexError):
                rows.take(torch.tensor([outside]))


def test_the_data_folder_is_the_option_the_variable_or_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTLBENCH_DATA", str(tmp_path / "named"))
    assert data_folder(tmp_path / "given") == tmp_path / "given"
    assert data_folder(None) == tmp_path / "named"
    monkeypatch.delenv("MTLBENCH_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_folder(None).parts[-2:] == ("mtlbench", "data")


LAYOUTS: dict[str, dict[str, Any]] = {
    "a chunk a row": {"chunks": (1, 6, 5, 3)},
    "contiguous": {},
    "several rows a chunk": {"chunks": (4, 6, 5, 3)},
    "compressed": {"chunks": (1, 6, 5, 3), "compression": "gzip"},
    "another byte order": {"dtype": ">f4"},
    "half precision": {"dtype": "<f2", "chunks": (1, 6, 5, 3)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_read_as_they_are_however_they_lie_in_the_file(tmp_path: Path, layout: str) -> None:
    values = (
        np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3)).astype(LAYOUTS[layout].get("dtype", "u1"))
    )
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=values, **LAYOUTS[layout])
    indices = torch.tensor([7, 0, 3, 7])
    expected = torch.from_numpy(values[3:][indices.numpy()].astype(values.dtype.newbyteorder("=")))
    with open_hdf5(tmp_path / "a.h5", "") as file:
        held, read = MemoryRows(file["a"], 3, 12), DiskRows(file["a"], 3, 12)
        for rows in (held, read):
            assert torch.equal(rows.take(indices), expected)
            assert rows.take(indices[:0]).shape == (0, 6, 5, 3)
            with pytest.raises(IndexError):
                rows.take(torch.tensor([9]))
        assert (read._places is not None) == (layout in ("a chunk a row", "contiguous", "half precision"))


def test_rows_that_were_never_written_have_the_fill_value(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        rows = file.create_dataset("a", (5, 4, 4, 1), "u1", chunks=(1, 4, 4, 1), fillvalue=9)
        rows[2] = 1
    with open_hdf5(tmp_path / "a.h5", "") as file:
        found = DiskRows(file["a"], 0, 5).take(torch.arange(5))
    assert found.flatten(1).float().mean(1).tolist() == [9, 9, 1, 9, 9]


def test_a_file_that_ends_early_or_is_closed_is_told(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = np.ones((4, 64, 64, 1), np.uint8)
    file = open_hdf5(tmp_path / "a.h5", "")
    rows = DiskRows(file["a"], 0, 4)
    os.truncate(tmp_path / "a.h5", (tmp_path / "a.h5").stat().st_size - 100)
    assert rows.take(torch.tensor([0])).all()
    with (
        pytest.raises(MtlbenchError, match="is truncated: get it again"),
        explained(tmp_path, "get it again"),
    ):
        rows.take(torch.tensor([3]))
    file.close()
    with pytest.raises(OSError, match="closed"):
        rows.take(torch.tensor([0]))


def test_processes_and_threads_read_from_one_handle_at_once(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=values, chunks=(1, 32, 32, 3))
    with open_hdf5(tmp_path / "a.h5", "") as file:
        rows = DiskRows(file["a"], 0, 64)

        def right(seed: int) -> bool:
            order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
            return bool((rows.take(order).numpy() == values[order.numpy()]).all())

        children = []
        for _ in range(2):
            children.append(os.fork())
            if not children[-1]:
                os._exit(0 if all(map(right, range(50))) else 1)
        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(right, range(200)))
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
