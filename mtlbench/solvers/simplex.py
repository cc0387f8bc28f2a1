"""The probability simplex."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mtlbench.compiled import compiled

Array = NDArray[np.float64]


@compiled()
def project_to_simplex(point: Array) -> Array:
    """Return the point of  {w >= 0, sum(w) = 1}  nearest to ``point`` ``[T]``. A kernel, also for kernels.

    All coordinates but those that end at 0 lose the same. Exact, by dropping what would turn negative until
    nothing does (Michelot, Journal of Optimization Theory and Applications 50, 1986).
    """
    largest = point.max()  # the same projection without it, and nothing is lost beside a large constant
    threshold, kept, before = -np.inf, 0, len(point) + 1
    while kept != before:
        before, kept, total = kept, 0, -1.0
        for value in point:
            if value - largest > threshold:
                total += value - largest
                kept += 1
        threshold = max(threshold, total / kept)  # rounding errors must not let anyone back in
    projected: Array = np.maximum(point - largest - threshold, 0)
    projected /= projected.sum()
    return projected
