"""Projections on the dual cone of the task gradients: the nearest vectors that conflict with no task."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mtlbench.compiled import compiled
from mtlbench.solvers.gram import cosines_and_lengths, failure, least_square, within_rounding
from mtlbench.solvers.nonnegative import block_pivoting, lawson_hanson, product

Array = NDArray[np.float64]


@within_rounding
def dual_cone_projection(gram: Array, weights: Array, *, tol: float = 1e-9) -> Array:
    """Return ``p`` such that ``Jᵀ p`` is the projection of ``Jᵀ w`` on ``{d : J d >= 0}``.

    gram: ``G = J Jᵀ`` ``[T, T]``, float64, of any scale. weights: ``w`` ``[T]``, or ``[K, T]`` for K
    projections, non-negative. tol: the largest optimality residual that is accepted, relative to the lengths
    of the gradients; about 1e-15 is reached.

    ``p`` minimises ``pᵀ G p`` subject to ``p >= w`` (Quinton & Rey, arXiv:2406.16232, proposition 1), a
    problem in ``v = p - w >= 0`` for the methods of `mtlbench.solvers.nonnegative`. The vector ``Jᵀ p`` is
    unique; ``p`` is where the gradients are independent. A gradient that is 0 adds nothing.

    Raises `SolverError` where ``G`` is not finite or not positive semidefinite, or ``tol`` is not reached; a
    matrix that lacks that by rounding alone is mended first (`within_rounding`).
    """
    projections, residual = _project(np.ascontiguousarray(gram), weights.reshape(-1, len(gram)), tol)
    if not residual <= tol:
        raise failure("dual_cone_projection", gram, residual, tol)
    return projections.reshape(weights.shape)


@compiled()
def _project(gram: Array, weights: Array, tol: float) -> tuple[Array, float]:
    """Return the projections ``[K, T]`` and their largest residual, NaN where the matrix cannot be solved."""
    projections, worst, shortest = weights.copy(), 0.0, least_square(gram)
    if not shortest >= 0:
        return projections, np.nan
    cosines, lengths = cosines_and_lengths(gram, shortest)
    for row in range(len(weights)):
        bound, size = _bound(cosines, lengths, weights[row])
        added, residual = _added(cosines, bound, tol)
        for i in range(len(gram)):
            projections[row, i] += added[i] * size / lengths[i]
        if residual > worst or math.isnan(residual):
            worst = residual
    return projections, worst


@compiled()
def _added(cosines: Array, bound: Array, tol: float) -> tuple[Array, float]:
    """Return the ``v >= 0`` ``[T]`` with ``C v - b >= 0`` and a product of 0, and the residual."""
    if len(bound) == 2:  # at most one of two vectors' slacks is negative, and filling it opens no other
        added = np.empty(2)
        for i in range(2):
            added[i] = max(bound[i], 0.0)
        return added, -1 - cosines[0, 1]
    added, ended = block_pivoting(cosines, bound)
    residual = _residual(cosines, bound, added) if ended else np.inf
    if not residual <= tol:
        added = lawson_hanson(cosines, bound)
        residual = _residual(cosines, bound, added)
    return added, residual


@compiled()
def _bound(cosines: Array, lengths: Array, weights: Array) -> tuple[Array, float]:
    """Return how far ``Jᵀ w`` is against each unit gradient ``[T]``, in units of a size, and that size.

    The size is what the parts of ``Jᵀ w`` measure together, so that b is of order one whatever their lengths.
    """
    count, size = len(weights), product(weights, lengths)
    start, bound = np.empty(count), np.empty(count)
    for i in range(count):
        start[i] = -weights[i] * lengths[i] / (size if size > 0 else 1.0)
    for i in range(count):
        bound[i] = product(cosines[i], start)
    return bound, size


@compiled()
def _residual(cosines: Array, bound: Array, added: Array) -> float:
    """Return how far from complementary unknowns and slacks are, relative to ``1 + sum(v)``."""
    largest, total = 0.0, 1.0
    for i in range(len(added)):
        error = abs(min(added[i], product(cosines[i], added) - bound[i]))
        total += added[i]
        if error > largest or math.isnan(error):
            largest = error
    return largest / total
