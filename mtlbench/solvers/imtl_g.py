"""IMTL-G: the weights whose update has the same projection onto every task gradient."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mtlbench.compiled import compiled
from mtlbench.solvers.cholesky import factorise, substitute
from mtlbench.solvers.eigen import decompose, recompose
from mtlbench.solvers.gram import cosines_and_lengths, failure, least_square

Array = NDArray[np.float64]

_DEPENDENT = 1e-12
"""Eigenvalues of the cosine matrix below this share of the largest are those of dependent directions."""

_INDEPENDENT = 1e-9
"""Where the reciprocal condition of the cosine matrix is surely above, no directions are dependent."""


def impartial_weights(gram: Array) -> Array:
    """Return weights ``w`` ``[T]`` of sum 1 with equal  u_t · sum_s w_s g_s  for all unit gradients u_t.

    gram: ``G = J Jᵀ`` ``[T, T]``. With C the cosines, C b = c 1 is solved for the shares b_t = w_t |g_t|:

    - where 1 lies in the range of C (always for independent gradients), b = C⁺ 1;
    - where it does not, equal projections are only possible at c = 0, so that b is the part of 1 in the
      null space of C and the update is 0. It is what the solution tends to as gradients become dependent.

    A gradient of length 0 sets no condition and has weight 0; all weights are 1/T where there is no other.
    Where the shares' weights add up to 0 (possible from three tasks on, with negative ones), no weights of
    sum 1 exist, and all are 0.

    Raises `SolverError` where G is not finite or has a negative diagonal.
    """
    weights, solved = _impartial_weights(gram, _INDEPENDENT)
    if not solved:
        raise failure("imtl-g", gram, math.inf, 0)
    return weights


@compiled()
def _impartial_weights(gram: Array, independent: float) -> tuple[Array, bool]:
    count, shortest = len(gram), least_square(gram)
    weights = np.zeros(count)
    if not shortest >= 0:
        return weights, False
    if shortest > 0:
        return _of_directions(gram, independent)
    present = np.diag(gram).nonzero()[0]
    if len(present) == 0:
        return weights + 1 / count, True
    part = np.empty((len(present), len(present)))
    for i in range(len(present)):
        for j in range(len(present)):
            part[i, j] = gram[present[i], present[j]]
    shares, solved = _of_directions(part, independent)
    weights[present] = shares
    return weights, solved


@compiled()
def _of_directions(gram: Array, independent: float) -> tuple[Array, bool]:
    """Return the weights for gradients of which none is 0, and whether they were found."""
    count, solved = len(gram), True
    cosines, lengths = cosines_and_lengths(gram, 1.0)
    shares = np.ones(count)
    if count > 2:  # of two, one is the other's mirror image, so their shares are equal
        factor = np.empty((count, count))
        if factorise(cosines, np.arange(count), factor) and _condition(factor) * independent < 1:
            substitute(factor, shares)
        else:
            shares, solved = _shares_of_dependent(cosines)
    weights = shares / lengths
    total, square = 0.0, 0.0
    for weight in weights:
        total += weight
        square += weight * weight
    if total * total <= 1e-24 * square:
        return np.zeros(count), solved
    return weights / total, solved


@compiled(reorder=True)
def _condition(factor: Array) -> float:
    """Return a bound on the condition of cosines ``C = Uᵀ U``: trace(C) trace(C⁻¹), at most T² times of it.

    factor: U, in the upper triangle. The second trace is the sum of the squares in the inverse of U.
    """
    count = len(factor)
    row, total = np.empty(count), 0.0
    for i in range(count):  # U is upper triangular, and so is its inverse R: R U = 1, row by row
        row[i:] = 0.0
        row[i] = 1.0
        for k in range(i, count):
            row[k] /= factor[k, k]
            total += row[k] * row[k]
            for j in range(k + 1, count):
                row[j] -= row[k] * factor[k, j]
    return count * total


@compiled()
def _shares_of_dependent(cosines: Array) -> tuple[Array, bool]:
    """Return the shares ``b`` ``[T]`` where gradients may depend on each other, and whether it ended."""
    count = len(cosines)
    values, parts, path, found = decompose(cosines, np.ones(count))
    smallest, beyond = _DEPENDENT * values.max(), 0.0
    for i in range(count):
        if values[i] <= smallest:
            beyond = max(beyond, abs(parts[i]))
    impossible = beyond > 1e-6 * math.sqrt(count)
    for i in range(count):
        if (values[i] <= smallest) != impossible:
            parts[i] = 0.0
        elif not impossible:
            parts[i] /= values[i]
    return recompose(path, parts), found
