"""The HDF5 file that runs read: written whole or not at all, checked when opened, read row by row."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlbench.atomic import replacing, translated
from mtlbench.errors import MtlbenchError

MEMORY_BUDGET = 2 * 2**30
"""Bytes of images and maps up to which a split is held in memory; a larger one is read row by row."""


BLOCK_BYTES = 1 << 20
"""Bytes that a writer keeps back before it writes."""


class _Tolerant(io.RawIOBase):
    """A file that HDF5 writes through, which never tells HDF5 of an error but keeps it.

    The HDF5 library cannot close a file whose writes fail (it crashes the process at exit, seen with HDF5
    2.0 on a full disk). So a failed write is remembered in `error`, later ones are dropped, and
    `Hdf5Writer` raises the error once HDF5 is done with the file.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._file = os.fdopen(descriptor, "r+b", buffering=0, closefd=False)
        self.error: OSError | None = None

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        got = self._file.readinto(view) or 0
        view[got:] = bytes(len(view) - got)
        return len(view)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        length = len(view)
        try:
            while self.error is None and len(view):
                view = view[self._file.write(view) :]
        except OSError as error:
            self.error = error
        return length

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._file.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def flush(self) -> None:
        """Do nothing: nothing is buffered here."""


class Table:
    """Arrays of a file that grow together, a row at a time; made by `Hdf5Writer.table`."""

    def __init__(self, file: h5py.File, channel: _Tolerant, prefix: str = "") -> None:
        self._file = file
        self._channel = channel
        self._prefix = prefix
        self._arrays: dict[str, h5py.Dataset] = {}
        self._pending: dict[str, list[Any]] = {}
        self._row_bytes = 0
        self._written = 0
        self.rows = 0
        """How many rows were appended."""

    def create(self, name: str, row: tuple[int, ...], dtype: str) -> None:
        """Create the array ``name`` of rows shaped ``row``; a chunk holds one image or many small rows."""
        chunk = (1, *row) if np.prod(row) >= 256 else (1024, *row)
        self._arrays[name] = self._file.create_dataset(
            self._prefix + name, (0, *row), dtype, maxshape=(None, *row), chunks=chunk
        )
        self._pending[name] = []
        self._row_bytes += int(np.prod(row)) * np.dtype(dtype).itemsize

    def append(self, **values: Any) -> None:
        """Append one row to each array."""
        for name, pending in self._pending.items():
            pending.append(values[name])
        self.rows += 1
        # Each write costs h5py much more than the copying: write some rows at a time.
        if (self.rows - self._written) * self._row_bytes >= BLOCK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the rows that were kept back, and raise the first error that the disk gave, if any."""
        if self.rows > self._written:
            for name, array in self._arrays.items():
                array.resize(self.rows, axis=0)
                array[self._written :] = np.asarray(self._pending[name], dtype=array.dtype)
                self._pending[name].clear()
            self._written = self.rows
        if self._channel.error is not None:
            raise self._channel.error


class Hdf5Writer(Table):
    """A new file and the table at its root; made by `hdf5_writer`."""

    def table(self, prefix: str) -> Table:
        """Return a table of its own whose arrays are named ``prefix`` and their name; flush it at its end."""
        return Table(self._file, self._channel, prefix)

    def fill(self, name: str, values: NDArray[Any]) -> None:
        """Write a whole array at once."""
        self._file.create_dataset(name, data=values)
        self.flush()

    def attributes(self, values: Mapping[str, str | int]) -> None:
        """Write attributes of the file."""
        self._file.attrs.update(values)
        self.flush()


@contextlib.contextmanager
def hdf5_writer(path: Path) -> Iterator[Hdf5Writer]:
    """Give a writer of a new HDF5 file that replaces ``path`` when, and only when, the block succeeds.

    Errors of the disk (full, unwritable) become one-line `MtlbenchError`; what was at ``path`` stays.
    """
    with translated(f"cannot write {path}"), replacing(path) as descriptor:
        channel = _Tolerant(descriptor)
        with h5py.File(channel, "w") as file:
            writer = Hdf5Writer(file, channel)
            yield writer
            writer.flush()
        if channel.error is not None:  # HDF5 wrote the rest when it closed the file
            raise channel.error


@contextlib.contextmanager
def explained(path: Path, remedy: str) -> Iterator[None]:
    """Turn what h5py raises for a broken file into one line that names the file and the ``remedy``."""
    try:
        yield
    except PermissionError as error:
        raise MtlbenchError(f"cannot read {path}: permission denied") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = "is truncated" if "truncated" in str(error) else "is damaged or no HDF5 file"
        raise MtlbenchError(f"{path} {reason}: {remedy}") from error


def open_hdf5(path: Path, remedy: str) -> h5py.File:
    """Open a file for reading, or raise `MtlbenchError` naming it and the ``remedy``."""
    with explained(path, remedy):
        # A complete file is never written again, so there is nothing to lock; and the lock that its writer
        # holds until just after the rename would make HDF5's own fail.
        return h5py.File(path, "r", locking=False)


def array(
    file: h5py.File, path: Path, name: str, shape: tuple[int | None, ...], dtype: str, remedy: str
) -> h5py.Dataset:
    """Return the array ``name`` of the open ``file``; `MtlbenchError` where it is missing or another.

    shape: None where any length is right. dtype: a NumPy kind and size (``"u1"``), or a kind alone (``"f"``).
    """
    with explained(path, remedy):
        found, there = file.get(name), sorted(file)
    if not isinstance(found, h5py.Dataset):
        raise MtlbenchError(f"{path} has no array '{name}' (it has {', '.join(there) or 'none'}): {remedy}")
    fits = len(shape) == found.ndim and all(
        want in (None, have) for want, have in zip(shape, found.shape, strict=True)
    )
    if not fits or not found.dtype.str.lstrip("<>|=").startswith(dtype):
        want = ", ".join("N" if length is None else str(length) for length in shape)
        have = ", ".join(map(str, found.shape))
        kind = np.dtype(dtype) if dtype[1:] else {"f": "float"}.get(dtype, dtype)
        raise MtlbenchError(
            f"{path}: array '{name}' is {found.dtype} [{have}], not {kind} [{want}]: {remedy}"
        )
    return found


class Rows(Protocol):
    """Rows of one array, read by index."""

    def take(self, indices: Tensor) -> Tensor:
        """Return the rows at ``indices`` (int64 ``[B]``), in that order, in memory of their own."""


class MemoryRows:
    """Rows ``start..stop`` of an array, held in memory."""

    def __init__(self, source: h5py.Dataset, start: int, stop: int) -> None:
        self._held = np.empty((stop - start, *source.shape[1:]), source.dtype.newbyteorder("="))
        if len(self._held):
            source.read_direct(self._held, np.s_[start:stop])

    def take(self, indices: Tensor) -> Tensor:
        """See `Rows.take`."""
        places = indices.numpy()
        if len(places) and places.min() < 0:  # NumPy would count from the end
            raise IndexError(f"index {places.min()} is outside of 0..{len(self._held) - 1}")
        return torch.from_numpy(self._held.take(places, axis=0))  # no threads of torch's, but many may take


class DiskRows:
    """Rows ``start..stop`` of an array, read from the open file when they are asked for.

    Where a row lies in the file as it does in memory (the layout is contiguous, or has a chunk a row, without
    a filter), it is read from there straight into its place in the batch. That leaves out the HDF5 library,
    which would work for one thread at a time; and any number of threads, and processes that were forked, may
    read at once. All other rows come through h5py, one by one: its list indexing is far slower (45 times,
    measured).
    """

    def __init__(self, source: h5py.Dataset, start: int, stop: int) -> None:
        self._source, self._start, self._length = source, start, stop - start
        self._places = _places(source)
        self._descriptor = -1 if self._places is None else int(source.file.id.get_vfd_handle())

    def take(self, indices: Tensor) -> Tensor:
        """See `Rows.take`. Raises `OSError` where the file ends too early."""
        out = np.empty((len(indices), *self._source.shape[1:]), self._source.dtype.newbyteorder("="))
        if self._places is not None and not self._source.id.valid:
            raise OSError("the file was closed")  # and its descriptor may be another's by now
        for i, index in enumerate(indices.tolist()):
            if not 0 <= index < self._length:
                raise IndexError(f"index {index} is outside of 0..{self._length - 1}")
            place = -1 if self._places is None else int(self._places[self._start + index])
            if place < 0:
                self._source.read_direct(out, np.s_[self._start + index], np.s_[i])
            elif os.preadv(self._descriptor, [out[i]], place) < out[i].nbytes:
                raise OSError("the file is truncated")
        return torch.from_numpy(out)


def _places(source: h5py.Dataset) -> NDArray[np.int64] | None:
    """Return where in the file each row begins, -1 for one that was never written.

    None where rows do not lie in the file as in memory, or the system cannot read at a place.
    """
    kept, row = source.id.get_create_plist(), source.shape[1:]
    as_in_memory = source.id.get_type().equal(h5py.h5t.py_create(source.dtype.newbyteorder("=")))
    plain = source.file.driver == "sec2" and source.file.userblock_size == 0 and not kept.get_nfilters()
    if not (row and as_in_memory and plain and hasattr(os, "preadv")):
        return None
    if kept.get_layout() == h5py.h5d.CONTIGUOUS and not kept.get_external_count():
        first = source.id.get_offset()
        size = source.dtype.itemsize * int(np.prod(row))
        return None if first is None else first + size * np.arange(len(source), dtype=np.int64)
    if kept.get_layout() == h5py.h5d.CHUNKED and source.chunks == (1, *row):
        places = np.full(len(source), -1, np.int64)

        def note(chunk: h5py.h5d.StoreInfo) -> None:
            places[chunk.chunk_offset[0]] = chunk.byte_offset

        source.id.chunk_iter(note)
        return places
    return None
