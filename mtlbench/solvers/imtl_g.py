"""IMTL-G: the weights whose update has the same projection onto every task gradient."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpocon, dposv

from mtlbench.solvers.gram import cosines_and_lengths, shortest_square

Array = NDArray[np.float64]

_DEPENDENT = 1e-12
"""Eigenvalues of the cosine matrix below this share of the largest are those of dependent directions."""

_INDEPENDENT = 1e-9
"""Where the estimated reciprocal condition of the cosine matrix is above, no directions are dependent."""


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
    shortest = shortest_square(gram, "imtl-g")
    if shortest > 0:
        return _of_directions(*cosines_and_lengths(gram, shortest))
    weights = np.zeros(len(gram))
    present = gram.diagonal().nonzero()[0]
    if not len(present):
        return weights + 1 / len(gram)
    part = gram.take(present, 0).take(present, 1)
    weights[present] = _of_directions(*cosines_and_lengths(part, 1.0))
    return weights


def _of_directions(cosines: Array, lengths: Array) -> Array:
    """Return the weights for gradients of which none is 0."""
    count = len(lengths)
    if count <= 2:  # one is the other's mirror image, so their shares are equal
        shares = np.ones(count)
    else:
        factor, shares, info = dposv(cosines, np.ones(count))
        if info != 0 or dpocon(factor, count)[0] < _INDEPENDENT:
            shares = _shares_of_dependent(cosines)
    weights = shares / lengths
    total = np.add.reduce(weights)
    if total * total <= 1e-24 * weights.dot(weights):
        return np.zeros(count)
    result: Array = weights / total
    return result


def _shares_of_dependent(cosines: Array) -> Array:
    """Return the shares ``b`` ``[T]`` where gradients may depend on each other."""
    values, vectors = np.linalg.eigh(cosines)
    dependent = int(values.searchsorted(_DEPENDENT * values[-1], side="right"))
    parts = np.add.reduce(vectors, axis=0)
    if dependent and np.abs(parts[:dependent]).max() > 1e-6 * math.sqrt(len(parts)):
        shares: Array = vectors[:, :dependent].dot(parts[:dependent])
    else:
        shares = vectors[:, dependent:].dot(parts[dependent:] / values[dependent:])
    return shares
