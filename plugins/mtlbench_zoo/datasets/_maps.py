"""Folders of numbered .npy maps, the layout in which preprocessed scenes are published.

``{train,val}/KIND/N.npy``, one array a file. The published "val" is the test split of the literature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mtlbench.data.photos import BrokenFileError
from mtlbench.data.splits import held_out
from mtlbench.errors import MtlbenchError


def scene_parts(source: Path, kinds: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Return the scenes by split as ``FOLDER/N``.

    Test is the published "val"; val is the tenth of the training scenes whose ``train/N`` has the smallest
    SHA-256. Raises `MtlbenchError` where a folder is missing or one kind has other scenes than another.
    """
    found = {folder: _scenes(source / folder, kinds) for folder in ("train", "val")}
    train, val = held_out(found["train"])
    return {"train": train, "val": val, "test": found["val"]}


def _scenes(folder: Path, kinds: Sequence[str]) -> list[str]:
    numbers: dict[str, set[str]] = {}
    for kind in kinds:
        if not (folder / kind).is_dir():
            raise MtlbenchError(
                f"{folder.parent} has no folder '{folder.name}/{kind}': see what it needs with mtlbench "
                f"info dataset"
            )
        paths = [path for path in (folder / kind).iterdir() if not path.name.startswith(".")]
        foreign = sorted(path.name for path in paths if path.suffix != ".npy" or not path.stem.isdigit())
        if foreign:
            raise MtlbenchError(
                f"{folder / kind / foreign[0]} (and {len(foreign) - 1} more) is not named N.npy: remove it"
            )
        numbers[kind] = {path.stem for path in paths}
    for kind in kinds[1:]:
        apart = numbers[kind] ^ numbers[kinds[0]]
        if apart:
            first = min(apart, key=int)
            has, lacks = (kind, kinds[0]) if first in numbers[kind] else (kinds[0], kind)
            raise MtlbenchError(
                f"{folder}: {has}/{first}.npy has no {lacks}/{first}.npy ({len(apart)} such scenes): get "
                f"the data again"
            )
    return [f"{folder.name}/{number}" for number in sorted(numbers[kinds[0]], key=int)]


class Scene:
    """The maps of one scene, scaled to a height; the width keeps the image's shape.

    Images are scaled with an antialiased bilinear filter, everything else takes the nearest pixel, so that no
    value is made up.
    """

    def __init__(self, source: Path, scene: str, size: int) -> None:
        self._folder, self._number = source / Path(scene).parent, Path(scene).name
        self._size = size
        self._image = self._load("image", (None, None, 3))
        height, width = self._image.shape[:2]
        self._space = (height, width)
        self._target = (size, round(width * size / height))

    def image(self) -> NDArray[np.uint8]:
        """Return the image as uint8 ``[H, W, 3]``; the file holds reals in 0..1 or bytes."""
        image = self._image
        if image.dtype != np.uint8:
            if image.size and not (image.min() >= -1e-6 and image.max() <= 1 + 1e-6):  # false for NaN
                self._refuse("image", f"values must be in 0..1, found {image.min():g}..{image.max():g}")
            image = np.round(image * 255).clip(0, 255).astype(np.uint8)
        if self._target == self._space:
            return np.asarray(image)
        scaled = Image.fromarray(image).resize(self._target[::-1], Image.Resampling.BILINEAR)
        return np.array(scaled, dtype=np.uint8)

    def labels(self, kind: str, classes: int) -> NDArray[np.int16]:
        """Return labels int16 ``[H, W]`` in 0..classes-1, -1 for none."""
        values = self._load(kind, self._space)
        if not (values == np.round(values)).all() or values.min() < -1 or values.max() >= classes:
            self._refuse(
                kind,
                f"labels must be whole, in 0..{classes - 1} or -1, found {values.min():g}..{values.max():g}",
            )
        return self._nearest(values).astype(np.int16)

    def positive(self, kind: str) -> NDArray[np.float32]:
        """Return positive reals float32 ``[H, W, 1]``; 0 in the file (not measured) becomes NaN."""
        values = self._load(kind, (*self._space, 1))
        if np.isinf(values).any() or values.min(initial=0, where=~np.isnan(values)) < 0:
            self._refuse(kind, "values must be finite and not below 0")
        return np.where(values > 0, values, np.nan).astype(np.float32)[self._places()]

    def directions(self, kind: str) -> NDArray[np.float16]:
        """Return unit vectors float16 ``[H, W, 3]``; a vector of 0 in the file (not known) becomes NaN."""
        values = self._load(kind, (*self._space, 3)).astype(np.float64)
        length = np.sqrt((values**2).sum(-1, keepdims=True))
        if np.isinf(length).any():
            self._refuse(kind, "values must be finite")
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(length > 1e-6, values / length, np.nan).astype(np.float16)[self._places()]

    @staticmethod
    def most(path: Path) -> float:
        """Return the largest value of a file; 0 where it cannot be read, which is told when it is used."""
        try:
            return float(np.load(path, allow_pickle=False).max())
        except (OSError, ValueError, EOFError):
            return 0.0

    def _load(self, kind: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
        try:
            values = np.load(self._folder / kind / f"{self._number}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            self._refuse(kind, f"cannot be read ({str(error).splitlines()[0]})")
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
            self._refuse(kind, "is not an array of numbers")
        if shape[-1] == 1 and values.shape == shape[:-1]:
            values = values[..., None]
        if values.ndim != len(shape) or any(
            want not in (None, have) for want, have in zip(shape, values.shape, strict=True)
        ):
            wanted = ", ".join("N" if n is None else str(n) for n in shape)
            self._refuse(kind, f"has the shape {list(values.shape)}, not [{wanted}]")
        return np.asarray(values)

    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return nearest(self._space, self._target)

    def _nearest(self, values: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(values[self._places()])

    def _refuse(self, kind: str, what: str) -> NoReturn:
        raise BrokenFileError(f"{self._folder.name}/{kind}/{self._number}.npy: {what}")


def nearest(space: tuple[int, int], target: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, as an index, the rows and columns that are nearest where ``space`` is scaled to ``target``."""
    rows, columns = (
        ((np.arange(wanted) + 0.5) * there / wanted).astype(np.int64)
        for wanted, there in zip(target, space, strict=True)
    )
    return rows[:, None], columns[None, :]
