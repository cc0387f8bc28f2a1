"""What the datasets of rendered scenes have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mtlbench.data.prepared import PreparedDataset
from mtlbench.data.splits import consecutive


class Rendered(PreparedDataset):
    """Scenes of random content, numbered from 0, rendered when they are first asked for."""

    encoder = "unet"
    default_size = 64
    licence = "generated, free to use"
    without = "600 scenes, rendered when they are first asked for"
    scenes: ClassVar[Mapping[str, int]] = {"train": 400, "val": 100, "test": 100}
    seed: ClassVar[int]
    """What sets the scenes of one dataset apart from those of another."""

    @classmethod
    def parts(cls, source: Path) -> Mapping[str, Sequence[Any]]:
        """Return the scenes' numbers by split."""
        return consecutive(cls.scenes)

    @classmethod
    def generator(cls, number: int) -> np.random.RandomState:
        """Return the generator of the scene of this number."""
        # Of all generators of NumPy this one alone promises the same numbers in all its versions.
        return np.random.RandomState([cls.seed, number])
