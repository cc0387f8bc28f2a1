"""Photographs of hands: how many fingers are up, and which hand is it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mtlbench.data.photos import read_grey
from mtlbench.data.prepared import Declared, PreparedDataset, Row
from mtlbench.data.splits import held_out
from mtlbench.errors import MtlbenchError

NAME = re.compile(r".*_([0-5])([LR])\.png")


class Fingers(PreparedDataset):
    """Hands on a dark ground, two tasks: the number of fingers that are up, and left or right.

    - count: 0..5 fingers; targets int64 ``[B]``;
    - hand: 0 left, 1 right; targets int64 ``[B]``.

    Inputs are grey, uint8 ``[B, 1, S, S]``. size: side of the square images, prepared with ``mtlbench data
    prepare fingers --source DIR --size SIZE``; None for the one that is prepared (128, the published size,
    unless another was asked for). The encoder has five stages, since a hand is larger than three can see.
    The published test images are the test split. The tenth of the training images whose names have the
    smallest SHA-256 is the val split (1,800 of 18,000).
    Source: Koryakin, "Fingers", Kaggle 2019 (koryakinp/fingers).
    """

    name = "fingers"
    title = "fingers"
    encoder = "conv[depth=5]"
    default_size = 128
    declared: ClassVar[Declared] = {
        "count": {"kind": "classification", "classes": 6},
        "hand": {"kind": "classification", "classes": 2, "mirror": [1, 0]},
    }
    licence = "see its homepage"
    citation = "P. Koryakin. Fingers: images of left and right hands. Kaggle, 2019."
    homepage = "https://www.kaggle.com/datasets/koryakinp/fingers"
    download = (
        "Get the archive (21,600 images of 128 x 128) from its homepage and unpack it; DIR is the folder "
        "that holds train/ and test/ with images NAME_<0-5><L or R>.png."
    )

    @classmethod
    def parts(cls, source: Path) -> Mapping[str, Sequence[Any]]:
        """Return the images' names by split; see `Fingers`."""
        found = {folder: cls._names(source / folder) for folder in ("train", "test")}
        train, val = held_out(found["train"])
        return {
            "train": [f"train/{name}" for name in train],
            "val": [f"train/{name}" for name in val],
            "test": [f"test/{name}" for name in found["test"]],
        }

    @classmethod
    def _names(cls, folder: Path) -> list[str]:
        if not folder.is_dir():
            raise MtlbenchError(
                f"{folder.parent} has no folder '{folder.name}': name the one that holds train/ and test/"
            )
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        foreign = [name for name in names if not NAME.fullmatch(name)]
        if foreign:
            raise MtlbenchError(
                f"{folder / foreign[0]} (and {len(foreign) - 1} more) is not named NAME_<0-5><L or R>.png: "
                "remove it"
            )
        return names

    @classmethod
    def row(cls, source: Path, item: Any, size: int) -> Row:
        """Return one image with the labels that its name holds."""
        match = NAME.fullmatch(Path(item).name)
        assert match is not None
        image = read_grey(source / item, size)[..., np.newaxis]
        return Row(image, {"count": int(match[1]), "hand": int(match[2] == "R")})
