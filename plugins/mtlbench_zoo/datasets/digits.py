"""Two handwritten digits, one over the other: which is on the left, which on the right?"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from mtlbench.contracts import SPLITS, Dataset, SplitName
from mtlbench.data.memory import MemorySplit
from mtlbench.errors import MtlbenchError
from mtlbench.tasks import classification

WRITERS = {"train": (0, 1029), "val": (1029, 1415), "test": (1415, 1797)}
"""Rows of the source by split. It goes writer by writer, and these edges lie between two writers."""
SIDE, CANVAS, JITTER = 16, 24, 3
SEED = 20170


class Digits(Dataset):
    """Two overlapping handwritten digits, as in MultiMNIST: tasks left and right, ten classes each.

    Two images of the 1,797 that come with scikit-learn (8 x 8, enlarged to 16 x 16) are put into 24 x 24
    pixels, one at the top left and one at the bottom right, each moved by 0..2 pixels: their corners are 4 to
    8 pixels apart, so they overlap. Train, val and test use images of different writers. What is drawn is
    fixed: it is the same in every run. No download.

    - left, right: the digit; targets int64 ``[B]``; inputs uint8 ``[B, 1, 24, 24]``.

    count: training images; a quarter as many for val, and for test. combine: what a pixel of both digits
    shows, the brighter one ("max") or their sum, cut off at white ("sum").
    Source: Sabour, Frosst & Hinton, NeurIPS 2017, arXiv:1710.09829 (MultiMNIST); Sener & Koltun, NeurIPS
    2018, arXiv:1810.04650 (the two tasks).
    Deviations: other digits, of the "Optical recognition of handwritten digits" set, and smaller images.
    """

    encoder = "conv"
    title = "digits"
    input_shape = (1, CANVAS, CANVAS)
    tasks = tuple(replace(classification(side, 10), mirror=False) for side in ("left", "right"))
    licence = "CC BY 4.0"
    citation = "E. Alpaydin, C. Kaynak. Optical Recognition of Handwritten Digits. UCI, 1998."
    homepage = "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"

    def __init__(self, count: int = 2000, combine: Literal["max", "sum"] = "max") -> None:
        if not 4 <= count <= 1_000_000:
            raise MtlbenchError(f"digits: count must be in 4..1000000, found {count}")
        images, labels = _source()
        self._splits: dict[SplitName, MemorySplit] = {}
        for number, name in enumerate(SPLITS):
            # Of all generators of NumPy this one alone promises the same numbers in all its versions.
            draw = np.random.RandomState(SEED + number)
            wanted = count if name == "train" else count // 4
            chosen = draw.randint(*WRITERS[name], size=(2, wanted))
            moved = draw.randint(JITTER, size=(2, 2, wanted))
            moved[1] += CANVAS - SIDE - (JITTER - 1)
            first, second = (_placed(images[i], *m) for i, m in zip(chosen, moved, strict=True))
            both = np.maximum(first, second) if combine == "max" else np.minimum(first + second, 255)
            left, right = torch.from_numpy(labels[chosen])
            inputs = torch.from_numpy(both.astype(np.uint8))[:, None]
            self._splits[name] = MemorySplit(inputs, {"left": left, "right": right})

    def split(self, name: SplitName) -> MemorySplit:
        """Return one split."""
        return self._splits[name]


def _source() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return all images as uint8 ``[1797, 16, 16]`` and their labels."""
    source = load_digits()
    small = np.round(source.images * (255 / 16)).astype(np.uint8)
    large = [Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR) for image in small]
    return np.stack([np.array(image) for image in large]), source.target.astype(np.int64)


def _placed(
    images: NDArray[np.uint8], down: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return images on empty canvases, int64 ``[N, 24, 24]``, each with its corner at (down, right)."""
    canvas = np.zeros((len(images), CANVAS, CANVAS), np.int64)
    place = np.arange(SIDE)
    rows = (down[:, None] + place)[:, :, None]
    columns = (right[:, None] + place)[:, None, :]
    canvas[np.arange(len(images))[:, None, None], rows, columns] = images
    return canvas
