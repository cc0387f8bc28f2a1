"""IMTL-G: the weights whose update has the same projection onto every task gradient."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mtlbench.solvers.gram import cosines_and_lengths, shortest_square

Array = NDArray[np.float64]

_DEPENDENT = 1e-12
"""Eigenvalues of the cosine matrix below this share of the largest are those of dependent directions."""


def impartial_weights(gram: Array) -> Array:
    """Return weights ``w`` ``[T]`` of sum 1 with equal  u_t · sum_s w_s g_s  for all unit gradients u_t.

    gram: ``G = J Jᵀ`` ``[T, T]``. With C the cosines, C b = c 1 is solved for the shares b_t = w_t |g_t|:

    - where 1 lies in the range of C (always for independent gradients), b = C⁺ 1;
    - where it does not, equal projections are only possible at c = 0, so that b is the part of 1 in the
      null space of C and the update is 0. It is what the solution tends to as gradients become dependent.

    A gradient of length 0 sets no condition and has weight 0; all weights are 1/T where there is no other.
    Where the shares' weights add up to 0 (possible from three tasks on, with negative ones), no weights of
    sum 1 exist, and all are 0.
    """
    cosines, lengths = cosines_and_lengths(gram, shortest_square(gram, "imtl-g"))
    real = gram.diagonal() > 0
    if not real.any():
        return np.full(len(gram), 1 / len(gram))
    values, vectors = np.linalg.eigh(cosines[np.ix_(real, real)])
    ones = vectors.sum(0)
    null = values <= _DEPENDENT * values[-1]
    outside = np.where(null, ones, 0.0)
    if np.abs(outside).max() > 1e-6 * np.sqrt(len(ones)):
        shares = vectors @ outside
    else:
        shares = vectors @ np.where(null, 0.0, ones / np.where(null, 1.0, values))
    weights = np.zeros(len(gram))
    weights[real] = shares / (lengths[real] / lengths[real].max())
    total = weights.sum()
    if abs(total) <= 1e-12 * np.abs(weights).sum():
        return np.zeros(len(gram))
    result: Array = weights / total
    return result
