"""The coursework layout: one HDF5 file for each split and kind of label.

``{train,val,test}/{images,masks,bboxes,binary}.h5``, each with one array that is named as its file: images
uint8 ``[N, H, W, 3]``, masks uint8 ``[N, H, W, 1]`` (1 animal), bboxes ``[N, 4]`` (xmin, ymin, xmax, ymax in
pixels of the H x W grid) and binary uint8 ``[N, 1]`` (0 cat, 1 dog). Its splits are kept.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from mtlbench.contracts import SPLITS, SplitName
from mtlbench.data.hdf5 import array, explained, open_hdf5
from mtlbench.data.photos import resize_map, resize_photo
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.datasets._pets_file import Broken, Sample

KINDS = ("images", "masks", "bboxes", "binary")
REMEDY = "get this file again, or name another folder with --source"
BLOCK = 64
"""Rows that are read at once: chunks of these files hold several rows, which would be unpacked for each."""


class Coursework:
    """A folder in the coursework layout."""

    layout = "coursework HDF5"

    def __init__(self, folder: Path) -> None:
        missing = [f"{s}/{k}.h5" for s in SPLITS for k in KINDS if not (folder / s / f"{k}.h5").is_file()]
        if missing:
            raise MtlbenchError(
                f"{folder} looks like the coursework layout, but has no {', no '.join(missing)}"
            )
        self.folder = folder
        self.quirks: Counter[str] = Counter()
        self._lengths = {split: self._length(split) for split in SPLITS}

    def __len__(self) -> int:
        return sum(self._lengths.values())

    @property
    def found(self) -> str:
        """What is there, in a few words."""
        return f"{len(self)} photographs in its own splits"

    def samples(self, size: int) -> Iterator[Sample | Broken]:
        """Give the samples; see `Source`."""
        for split in SPLITS:
            with self._opened(split) as (images, masks, boxes, labels):
                for start in range(0, self._lengths[split], BLOCK):
                    rows = slice(start, start + BLOCK)
                    with explained(self.folder / split, REMEDY):
                        block = images[rows], masks[rows], boxes[rows].astype(float), labels[rows]
                    for i, (image, mask, box, label) in enumerate(zip(*block, strict=True), start):
                        yield self._sample(split, i, image, mask[..., 0], box, int(label[0]), size)

    def _sample(
        self,
        split: SplitName,
        i: int,
        image: NDArray[np.uint8],
        mask: NDArray[np.uint8],
        box: NDArray[np.float64],
        label: int,
        size: int,
    ) -> Sample | Broken:
        height, width = image.shape[:2]
        limit = np.array([width, height, width, height])
        inside = np.clip(box, 0, limit)
        if not np.isfinite(box).all() or inside[0] >= inside[2] or inside[1] >= inside[3]:
            return Broken(
                f"{split}/bboxes.h5 row {i}: {box.round(1).tolist()} is no box in {width} x {height}"
            )
        if mask.max() > 1:
            return Broken(f"{split}/masks.h5 row {i}: value {mask.max()}, a mask has 0 and 1")
        if label > 1:
            return Broken(f"{split}/binary.h5 row {i}: value {label}, a label is 0 or 1")
        self.quirks["head box that left its photograph (clipped)"] += bool((inside != box).any())
        self.quirks["mask without an animal"] += not mask.any()
        xmin, ymin, xmax, ymax = (inside / limit).tolist()
        name = f"{split}/{i}"
        return Sample(
            name, resize_photo(image, size), resize_map(mask, size), (xmin, ymin, xmax, ymax), label, split
        )

    def _length(self, split: SplitName) -> int:
        with self._opened(split) as (images, *_):
            return int(images.shape[0])

    @contextlib.contextmanager
    def _opened(self, split: SplitName) -> Iterator[list[h5py.Dataset]]:
        """Give the four arrays of a split, checked for matching shapes."""
        with contextlib.ExitStack() as stack:
            arrays: list[h5py.Dataset] = []
            shape: tuple[int | None, ...] = (None, None, None, 3)
            for kind in KINDS:
                path = self.folder / split / f"{kind}.h5"
                file = stack.enter_context(open_hdf5(path, REMEDY))
                if kind != "images":
                    n, height, width, _ = arrays[0].shape
                    shape = {"masks": (n, height, width, 1), "bboxes": (n, 4), "binary": (n, 1)}[kind]
                arrays.append(array(file, path, kind, shape, "f" if kind == "bboxes" else "u1", REMEDY))
            yield arrays
