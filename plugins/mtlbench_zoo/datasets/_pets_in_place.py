"""The coursework layout, read where it lies: no preparation, in its own size."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from mtlbench.contracts import SPLITS, SplitName
from mtlbench.data.hdf5 import MEMORY_BUDGET, DiskRows, MemoryRows, Rows, explained, open_hdf5
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.datasets._pets_coursework import REMEDY, Coursework


class InPlace:
    """The open files of a folder in the coursework layout, checked as `Coursework` does; read as `PetsFile`.

    boxes float32 ``[N, 4]`` in 0..1 (clipped to the image) and labels uint8 ``[N]``, train first.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise MtlbenchError(f"pets: parameter 'path': there is no folder '{folder}'")
        Coursework(folder)
        self._folder = folder
        self._files: list[h5py.File] = []
        self._images = {split: self._open(split, "images") for split in SPLITS}
        self._masks = {split: self._open(split, "masks") for split in SPLITS}
        sizes = {images.shape[1:3] for images in self._images.values()}
        if len(sizes) > 1:
            raise MtlbenchError(
                f"{folder}: the splits have images of different sizes: {sorted(sizes)}; {REMEDY}"
            )
        self.height, self.width = (int(side) for side in sizes.pop())
        self._edges = np.cumsum([0, *(len(images) for images in self._images.values())]).tolist()
        with explained(folder, REMEDY):
            boxes = np.concatenate([self._open(split, "bboxes")[()] for split in SPLITS]).astype(float)
            labels = np.concatenate([self._open(split, "binary")[()] for split in SPLITS])
        limit = np.array([self.width, self.height, self.width, self.height])
        inside = np.clip(boxes, 0, limit)
        bad = ~(np.isfinite(boxes).all(1) & (inside[:, :2] < inside[:, 2:]).all(1))
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise MtlbenchError(f"{folder}: sample {row}: {boxes[row].round(1).tolist()} is no box; {REMEDY}")
        self.boxes = (inside / limit).astype(np.float32)
        self.labels = labels[:, 0]

    def _open(self, split: SplitName, kind: str) -> h5py.Dataset:
        file = open_hdf5(self._folder / split / f"{kind}.h5", REMEDY)
        self._files.append(file)
        return file[kind]

    def rows(self, name: SplitName, budget: int = MEMORY_BUDGET) -> tuple[Rows, Rows, slice]:
        """Return images and masks of a split, and where it lies in `boxes` and `labels`; see `PetsFile`."""
        images, masks = self._images[name], self._masks[name]
        kind = MemoryRows if images.size + masks.size <= budget else DiskRows
        start = self._edges[SPLITS.index(name)]
        with explained(self._folder / name, REMEDY):
            return (
                kind(images, 0, len(images)),
                kind(masks, 0, len(images)),
                slice(start, start + len(images)),
            )
