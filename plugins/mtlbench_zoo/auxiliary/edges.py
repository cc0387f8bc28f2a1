"""Canny's edges as the target."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from mtlbench.contracts import Auxiliary, Map, Task
from mtlbench.errors import MtlbenchError
from mtlbench.losses import BinaryCrossEntropy
from mtlbench.metrics import dice

Array = NDArray[Any]

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""


class Edges(Auxiliary):
    """Edges: find the contours that Canny's detector sees.

    Predicts one logit a pixel; the target, int64 ``[B, H, W]``, is 1 on edges and 0 elsewhere; the loss is
    binary cross-entropy. Score: Dice, which is the F1 score of the edge pixels, without tolerance in place.

    The detector: smooth the brightness by a Gaussian; take the gradient (Sobel, in brightness a pixel); keep
    the pixels where its length is largest along its own direction, the neighbours' being interpolated; of
    these keep each connected set (eight neighbours) that lies above ``low`` throughout and reaches ``high``
    somewhere.

    sigma: standard deviation of the Gaussian in pixels, above 0. low, high: thresholds, 0 < low <= high; a
    step of height h between two even areas has a gradient of about 0.3 h for sigma 1, so that by default an
    edge needs a step of a sixth of the range.
    Inputs: as they are. Colour images are weighted to brightness (ITU-R BT.601); of other numbers of channels
    the mean is taken.
    Source: Canny, IEEE TPAMI 8(6), 1986.
    Deviations: thresholds are constants, where the paper sets them from an estimate of the image's noise; one
    scale only, without feature synthesis.
    """

    def __init__(self, sigma: float = 1.0, low: float = 0.02, high: float = 0.05) -> None:
        if not (math.isfinite(sigma) and sigma > 0):
            raise MtlbenchError(f"edges: 'sigma' must be finite and above 0, found {sigma}")
        if not (0 < low <= high < math.inf):
            raise MtlbenchError(f"edges: 'low' and 'high' must be 0 < low <= high, found {low} and {high}")
        self.sigma, self.low, self.high = sigma, low, high

    def task(self, input_shape: tuple[int, ...]) -> Task:
        """Return the task ``edges``, a map of one logit."""
        return Task("edges", Map(1), BinaryCrossEntropy(), (dice(),), auxiliary=True)

    def target(self, clean: Tensor) -> Tensor:
        """Return the edges of the images."""
        pixels = clean.numpy().astype(np.float64)
        weights = LUMA if pixels.shape[1] == 3 else (1 / pixels.shape[1],) * pixels.shape[1]
        # Channel by channel: a matrix product might sum in another order for another batch.
        grey = sum(weight * pixels[:, channel] for channel, weight in enumerate(weights))
        return torch.from_numpy(canny(np.asarray(grey), self.sigma, self.low, self.high).astype(np.int64))


def canny(grey: Array, sigma: float, low: float, high: float) -> Array:
    """Return where images ``[B, H, W]`` have edges, bool; see `Edges`."""
    smooth = ndimage.gaussian_filter(grey, (0, sigma, sigma), mode="nearest")
    down, right = (_slope(smooth, axis) for axis in (1, 2))
    length = np.hypot(down, right)
    ridge = np.zeros(grey.shape, dtype=bool)
    found = np.nonzero(length >= low)  # few pixels, and only these need to look at their neighbours
    ridge[found] = _largest(length, down[found], right[found], found)
    around = np.zeros((3, 3, 3))
    around[1] = 1  # eight neighbours, none of them in another image
    sets, count = ndimage.label(ridge, around)
    strong = np.zeros(count + 1, dtype=bool)
    strong[sets[ridge & (length >= high)]] = True
    return np.asarray(strong[sets])


def _slope(smooth: Array, axis: int) -> Array:
    """Return Sobel's derivative along one axis of ``[B, H, W]``, per pixel."""
    across = ndimage.correlate1d(smooth, [0.25, 0.5, 0.25], 3 - axis, mode="nearest")
    slope: Array = ndimage.correlate1d(across, [-0.5, 0.0, 0.5], axis, mode="nearest")
    return slope


def _largest(length: Array, down: Array, right: Array, place: tuple[Array, ...]) -> Array:
    """Return which pixels have the largest gradient among themselves and both neighbours along it.

    The neighbours lie between two pixels, one straight on and one on the diagonal, and are interpolated. Of
    two that are equal the second one counts, so that an even ridge is one pixel wide.
    """
    padded = np.pad(length, ((0, 0), (1, 1), (1, 1)))
    image, y, x = place[0], place[1] + 1, place[2] + 1
    dy, dx = np.sign(down).astype(int), np.sign(right).astype(int)
    steep = abs(down) >= abs(right)
    straight_y, straight_x = np.where(steep, dy, 0), np.where(steep, 0, dx)
    share = np.minimum(abs(down), abs(right)) / np.maximum(abs(down), abs(right))

    def neighbour(way: int) -> Array:
        straight = padded[image, y + way * straight_y, x + way * straight_x]
        diagonal = padded[image, y + way * dy, x + way * dx]
        return np.asarray((1 - share) * straight + share * diagonal)

    here = padded[image, y, x]
    return np.asarray((here >= neighbour(-1)) & (here > neighbour(1)))
