"""The probability simplex."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def project_to_simplex(point: Array) -> Array:
    """Return the point of  {w >= 0, sum(w) = 1}  nearest to ``point`` ``[T]``.

    Exact, by sorting (Held, Wolfe & Crowder, Math. Programming 6, 1974): what is subtracted from all
    coordinates is known as soon as it is known which of them stay positive.
    """
    shifted = point - point.max()  # the same projection, and nothing is lost beside a large constant
    falling = np.sort(shifted)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(point) + 1)
    threshold = excess[np.flatnonzero(falling > excess)[-1]]
    projected = np.maximum(shifted - threshold, 0)
    projected /= projected.sum()
    result: Array = projected
    return result
