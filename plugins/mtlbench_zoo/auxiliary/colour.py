"""Brightness as the input, colour as the target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlbench.contracts import Auxiliary, Map, Task
from mtlbench.errors import MtlbenchError
from mtlbench.losses import MSE
from mtlbench.metrics import mae, rmse

Array = NDArray[Any]

SCALE = 110.0
"""What a and b are divided by: in sRGB they lie in -86.2..98.2 and -107.9..94.5, so targets lie in -1..1."""

TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
"""From linear sRGB to CIE XYZ, white D65; its rows add up to `WHITE`."""

WHITE = tuple(map(sum, TO_XYZ))


class Colour(Auxiliary):
    """Colourisation: see brightness only, give the colours back.

    The image is taken from sRGB to CIE L*a*b* (white D65). The input of all tasks becomes L / 100, once for
    each of the three channels, so that every encoder fits; the target is (a, b) / 110, float32 ``[B, 2, H,
    W]`` in -1..1. The loss is the mean squared error. Scores: MAE and RMSE, in units of a and b.

    Inputs: brightness is taken of what the auxiliary tasks named before have made of the image, cut off at 0
    and 1; the target is of the clean image. All tasks of the run see grey images, in val and test as in
    train. Images must have three channels.
    Source: Zhang, Isola and Efros, ECCV 2016, arXiv:1603.08511, equation 1 (squared error of a and b from L)
    and the scaling by 110 of their code; Larsson, Maire and Shakhnarovich, CVPR 2017, arXiv:1703.04044, for
    colourisation as self-supervision.
    Deviations: regression, where both papers' best results come from classification over bins of colour.
    """

    def task(self, input_shape: tuple[int, ...]) -> Task:
        """Return the task ``colour``, a map of two channels; refuses images without three channels."""
        if input_shape[0] != 3:
            raise MtlbenchError(
                f"colour needs images of 3 channels (red, green, blue), and these have {input_shape[0]}"
            )
        metrics = (mae("ab", SCALE), rmse("ab", SCALE))
        return Task("colour", Map(2), MSE(), metrics, auxiliary=True)

    def target(self, clean: Tensor) -> Tensor:
        """Return a and b of the images, over 110."""
        return torch.from_numpy((lab(clean.numpy())[:, 1:] / SCALE).astype(np.float32))

    def alter(self, inputs: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return L / 100 in three channels."""
        lightness = lab(inputs.numpy())[:, :1] / 100
        return torch.from_numpy(lightness.astype(np.float32).repeat(3, axis=1))


def lab(rgb: Array) -> Array:
    """Return L in 0..100, a and b of sRGB images ``[B, 3, H, W]`` in 0..1 (cut off outside), float64.

    In double precision and channel by channel, so that a pixel's value hangs on nothing but itself.
    """
    coded = rgb.astype(np.float64).clip(0, 1)
    linear = np.where(coded > 0.04045, ((coded + 0.055) / 1.055) ** 2.4, coded / 12.92)
    red, green, blue = linear[:, 0], linear[:, 1], linear[:, 2]
    x, y, z = (
        _cube_root((r * red + g * green + b * blue) / white)
        for (r, g, b), white in zip(TO_XYZ, WHITE, strict=True)
    )
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def _cube_root(t: Array) -> Array:
    """Return the cube root, near 0 the line that continues it (CIE 15)."""
    return np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
