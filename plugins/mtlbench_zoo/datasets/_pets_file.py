"""The one file that a run on `pets` reads: its name, what is in it, and how it is written and opened.

``pets-SIZE.h5`` holds N samples, those of train first, then val, then test:

- images uint8 ``[N, S, S, 3]`` and masks uint8 ``[N, S, S]`` (1 animal, 0 background, 255 no label);
- boxes float32 ``[N, 4]``: head box xmin, ymin, xmax, ymax in 0..1; labels uint8 ``[N]``: 0 cat, 1 dog;
- split uint8 ``[N]``: 0 train, 1 val, 2 test; names ``[N]``: where a sample comes from;
- attributes: format, version, title, size, layout (of the source), missing_masks, broken, ``quirk: ...``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from mtlbench.contracts import SPLITS, SplitName
from mtlbench.data.hdf5 import (
    MEMORY_BUDGET,
    DiskRows,
    MemoryRows,
    Rows,
    array,
    explained,
    hdf5_writer,
    open_hdf5,
)
from mtlbench.data.progress import progress
from mtlbench.data.splits import shares
from mtlbench.errors import MtlbenchError

FORMAT = "mtlbench-pets"
VERSION = 1
MISSING = 255


@dataclass(frozen=True)
class Sample:
    """One row of the file. mask: None where there is none. split: None where the source has no splits."""

    name: str
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None
    box: tuple[float, float, float, float]
    label: int
    split: SplitName | None = None


@dataclass(frozen=True)
class Broken:
    """A sample that could not be read: one line that names the file and says why."""

    reason: str


class Source(Protocol):
    """Where samples come from."""

    layout: str
    quirks: Counter[str]
    """What was odd and could be handled, counted; complete once `samples` is exhausted."""

    def __len__(self) -> int:
        """Return how many samples `samples` gives, broken ones included."""

    def samples(self, size: int) -> Iterator[Sample | Broken]:
        """Give the samples in the order of the file; where they name a split, train first and test last."""


@dataclass(frozen=True)
class Summary:
    """What was written: how many samples are train, val and test, and which were left out."""

    counts: tuple[int, int, int]
    broken: tuple[str, ...]


def file_path(data_dir: Path, size: int) -> Path:
    """Return where the data of this size lies once prepared."""
    return data_dir / f"pets-{size}.h5"


def prepared_sizes(data_dir: Path) -> list[int]:
    """Return the sizes that are prepared in the folder, smallest first."""
    names = (re.fullmatch(r"pets-(\d+)\.h5", path.name) for path in data_dir.glob("pets-*.h5"))
    return sorted(int(match[1]) for match in names if match)


def write(path: Path, title: str, source: Source, size: int) -> Summary:
    """Write the samples of ``source`` to ``path``, which appears, or is replaced, only when all went well.

    Broken ones are left out; more than 1 % of them raises `MtlbenchError`. One sample at a time is in memory.
    """
    names: list[bytes] = []
    splits: Counter[SplitName | None] = Counter()
    broken: list[str] = []
    missing = 0
    with hdf5_writer(path) as file, progress(path.name, len(source)) as advance:
        file.create("images", (size, size, 3), "u1")
        file.create("masks", (size, size), "u1")
        file.create("boxes", (4,), "f4")
        file.create("labels", (), "u1")
        for item in source.samples(size):
            advance(1)
            if isinstance(item, Broken):
                broken.append(item.reason)
                if len(broken) > len(source) / 100:
                    raise MtlbenchError(
                        f"more than 1 % of the {len(source)} samples are broken ({'; '.join(broken[:3])}): "
                        "nothing was written; get the data again"
                    )
                continue
            mask = np.full((size, size), MISSING, np.uint8) if item.mask is None else item.mask
            missing += item.mask is None
            file.append(images=item.image, masks=mask, boxes=item.box, labels=item.label)
            names.append(item.name.encode())
            splits[item.split] += 1
        train, val, test = shares(file.rows) if None in splits else (splits[name] for name in SPLITS)
        if min(train, val, test) < 1:
            raise MtlbenchError(
                f"too few samples: {train} train, {val} val, {test} test (of {file.rows} with a head box), "
                "and each split needs one; nothing was written"
            )
        file.fill("split", np.repeat(np.arange(3, dtype=np.uint8), (train, val, test)))
        file.fill("names", np.array(names))
        file.attributes({"format": FORMAT, "version": VERSION, "title": title, "size": size})
        file.attributes({"layout": source.layout, "missing_masks": missing, "broken": len(broken)})
        file.attributes({f"quirk: {quirk}": count for quirk, count in sorted((+source.quirks).items())})
    return Summary((train, val, test), tuple(broken))


class PetsFile:
    """An open file, checked for being what it should be."""

    def __init__(self, path: Path, size: int, remedy: str) -> None:
        self._path, self._remedy = path, remedy
        self._file = open_hdf5(path, remedy)
        with explained(path, remedy):
            self.attributes: dict[str, Any] = dict(self._file.attrs)
        found = (self.attributes.get("format"), self.attributes.get("version"))
        if found != (FORMAT, VERSION):
            raise MtlbenchError(f"{path} is not of the format '{FORMAT}' version {VERSION}: {remedy}")
        self._images = self._array("images", (None, size, size, 3), "u1")
        n = self._images.shape[0]
        self._masks = self._array("masks", (n, size, size), "u1")
        boxes = self._array("boxes", (n, 4), "f4")
        labels = self._array("labels", (n,), "u1")
        split = self._array("split", (n,), "u1")
        with explained(path, remedy):
            self.boxes, self.labels, self._split = boxes[()], labels[()], split[()].astype(int)
        self._check_values()
        self._edges = np.searchsorted(self._split, np.arange(4)).tolist()

    def _array(self, name: str, shape: tuple[int | None, ...], dtype: str) -> h5py.Dataset:
        return array(self._file, self._path, name, shape, dtype, self._remedy)

    def _check_values(self) -> None:
        low, high = self.boxes[:, :2], self.boxes[:, 2:]
        rules = {
            "labels must be 0 or 1": np.all(self.labels <= 1),
            "boxes must have 0 <= min < max <= 1": np.all((low >= 0) & (low < high) & (high <= 1)),
            "split must be sorted": np.all(np.diff(self._split) >= 0),
            "split must hold 0, 1 and 2": set(self._split.tolist()) == {0, 1, 2},
        }
        for rule, holds in rules.items():
            if not holds:
                raise MtlbenchError(f"{self._path}: {rule}: {self._remedy}")

    def counts(self) -> dict[str, int]:
        """Return the samples by split."""
        return {
            name: stop - start
            for name, start, stop in zip(SPLITS, self._edges, self._edges[1:], strict=False)
        }

    def rows(self, name: SplitName, budget: int = MEMORY_BUDGET) -> tuple[Rows, Rows, slice]:
        """Return images and masks of a split, and where it lies in `boxes` and `labels`.

        They are held in memory where they fit the ``budget`` (bytes), else read from the file when asked for.
        """
        code = SPLITS.index(name)
        start, stop = self._edges[code], self._edges[code + 1]
        size = self._images.shape[1]
        kind = MemoryRows if (stop - start) * size * size * 4 <= budget else DiskRows
        with explained(self._path, self._remedy):
            return kind(self._images, start, stop), kind(self._masks, start, stop), slice(start, stop)
