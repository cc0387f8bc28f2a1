"""The official file of NYU Depth v2, as MATLAB wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mtlbench.data.hdf5 import explained, open_hdf5
from mtlbench.data.photos import BrokenFileError
from mtlbench.data.prepared import Row
from mtlbench.data.splits import held_out
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.datasets._maps import nearest

LABELED = "nyu_depth_v2_labeled.mat"
SPLITS, TO_40, TO_13 = "splits.mat", "classMapping40.mat", "class13Mapping.mat"
AGAIN = "get it again"


class Picture(NamedTuple):
    """One scene: its place in the file, from 0 on, and the class 0..12 (-1: none) of each label."""

    name: str
    place: int
    classes: NDArray[np.int16]


def parts(folder: Path) -> Mapping[str, Sequence[Picture]]:
    """Return the scenes by split: the official test is test, val the tenth of the official training scenes.

    Which tenth follows from the SHA-256 of ``train/N``, N from 1 on as in the official split. Raises
    `MtlbenchError` where one of the four files is missing or is not what it should be.
    """
    missing = [name for name in (LABELED, SPLITS, TO_40, TO_13) if not (folder / name).is_file()]
    if missing:
        raise MtlbenchError(
            f"{folder} has no {missing[0]}: beside {LABELED} there must be the official {SPLITS} (its"
            f" homepage), {TO_40} (Gupta et al.) and {TO_13} (SceneNet); all three are in"
            " https://github.com/ankurhanda/nyuv2-meta-data"
        )
    with open_hdf5(folder / LABELED, AGAIN) as file, explained(folder / LABELED, AGAIN):
        images, depths, labels = (file.get(name) for name in ("images", "rawDepths", "labels"))
        if not all(isinstance(found, h5py.Dataset) for found in (images, depths, labels)):
            raise MtlbenchError(f"{folder / LABELED} lacks images, rawDepths or labels: {AGAIN}")
        count, _, *space = images.shape
        if images.shape[1] != 3 or depths.shape != (count, *space) or labels.shape != depths.shape:
            raise MtlbenchError(
                f"{folder / LABELED}: images {list(images.shape)}, rawDepths {list(depths.shape)} and labels"
                f" {list(labels.shape)} do not fit each other: {AGAIN}"
            )
    classes = _classes(folder)
    found = _mat(folder / SPLITS)
    numbers = {name: _whole(folder / SPLITS, found, key) for name, key in
               (("train", "trainNdxs"), ("test", "testNdxs"))}  # fmt: skip
    listed = [n for ns in numbers.values() for n in ns.tolist()]
    if not listed or min(listed) < 1 or max(listed) > count or len(set(listed)) < len(listed):
        raise MtlbenchError(
            f"{folder / SPLITS} does not split the {count} scenes of {LABELED}: each number must be in"
            f" 1..{count}, once"
        )
    train, val = held_out([f"train/{n}" for n in sorted(numbers["train"].tolist())])
    names = {"train": train, "val": val, "test": [f"test/{n}" for n in sorted(numbers["test"].tolist())]}
    return {
        split: [Picture(name, int(name.rpartition("/")[2]) - 1, classes) for name in members]
        for split, members in names.items()
    }


def row(folder: Path, scene: Picture, size: int) -> Row:
    """Return one scene, its maps turned upright: MATLAB counts along columns first."""
    with open_hdf5(folder / LABELED, AGAIN) as file, explained(folder / LABELED, AGAIN):
        image = np.asarray(file["images"][scene.place]).transpose(2, 1, 0)
        depth = np.asarray(file["rawDepths"][scene.place], dtype=np.float32).T
        labels = np.asarray(file["labels"][scene.place]).T
    if labels.max(initial=0) >= len(scene.classes):
        raise BrokenFileError(
            f"{LABELED}: {scene.name} has label {labels.max()}, and {TO_40} knows {len(scene.classes) - 1}"
        )
    if not np.isfinite(depth).all() or depth.min(initial=0) < 0:
        raise BrokenFileError(f"{LABELED}: {scene.name}: depths must be finite and not below 0")
    height, width = labels.shape
    target = (size, round(width * size / height))
    places = nearest((height, width), target)
    pixels = Image.fromarray(np.ascontiguousarray(image, dtype=np.uint8))
    if target != (height, width):
        pixels = pixels.resize(target[::-1], Image.Resampling.BILINEAR)
    measured = np.where(depth > 0, depth, np.nan).astype(np.float32)[..., None]
    return Row(
        np.array(pixels, dtype=np.uint8),
        {"segmentation": scene.classes[labels][places], "depth": measured[places]},
    )


def _classes(folder: Path) -> NDArray[np.int16]:
    """Return the class 0..12 of each label of the file, -1 for label 0 and for labels that have none."""
    to_40 = _whole(folder / TO_40, _mat(folder / TO_40), "mapClass")
    struct = np.asarray(_mat(folder / TO_13).get("classMapping13", ()))
    fields = {name: struct[name].item() for name in struct.dtype.names or ()}
    to_13 = _whole(folder / TO_13, fields, "labels13")
    if len(to_13) != 40 or to_40.max(initial=0) > 40 or to_13.max(initial=0) > 13:
        raise MtlbenchError(
            f"{folder}: {TO_40} must map labels to 0..40 and {TO_13} 40 classes to 0..13, found"
            f" 0..{to_40.max()} and {len(to_13)} classes to 0..{to_13.max()}"
        )
    none = np.zeros(1, np.int64)
    classes: NDArray[np.int64] = np.concatenate([none, to_13])[np.concatenate([none, to_40])]
    return (classes - 1).astype(np.int16)


def _mat(path: Path) -> Mapping[str, Any]:
    from scipy.io import loadmat

    try:
        return dict(loadmat(path))
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        raise MtlbenchError(f"{path} cannot be read ({str(error).splitlines()[0]}): {AGAIN}") from error


def _whole(path: Path, found: Mapping[str, Any], name: str) -> NDArray[np.int64]:
    """Return an array of whole numbers from 0 on, whatever its shape, as a list of them."""
    values = np.asarray(found.get(name, ()))
    if (
        not values.size
        or values.dtype.kind not in "fiu"
        or (values != values.round()).any()
        or values.min() < 0
    ):
        raise MtlbenchError(f"{path} has no '{name}' of whole numbers from 0 on: {AGAIN}")
    return values.astype(np.int64).ravel()
