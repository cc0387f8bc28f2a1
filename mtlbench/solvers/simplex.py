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
    falling = sorted(point.tolist(), reverse=True)
    largest = falling[0]  # the same projection without it, and nothing is lost beside a large constant
    total, threshold = -1.0, 0.0
    for number, value in enumerate(falling, 1):
        total += value - largest
        if value - largest <= total / number:
            break
        threshold = total / number
    projected: Array = np.maximum(point - largest - threshold, 0)
    projected /= np.add.reduce(projected)
    return projected
