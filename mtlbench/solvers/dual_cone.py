"""Projections on the dual cone of the task gradients: the nearest vectors that conflict with no task."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mtlbench.solvers.gram import cosines_and_lengths, not_reached, shortest_square
from mtlbench.solvers.nonnegative import block_pivoting, lawson_hanson

Array = NDArray[np.float64]


def dual_cone_projection(gram: Array, weights: Array, *, tol: float = 1e-9) -> Array:
    """Return ``p`` such that ``Jᵀ p`` is the projection of ``Jᵀ w`` on ``{d : J d >= 0}``.

    gram: ``G = J Jᵀ`` ``[T, T]``, float64, of any scale. weights: ``w`` ``[T]``, or ``[K, T]`` for K
    projections, non-negative. tol: the largest optimality residual that is accepted, relative to the lengths
    of the gradients; about 1e-15 is reached.

    ``p`` minimises ``pᵀ G p`` subject to ``p >= w`` (Quinton & Rey, arXiv:2406.16232, proposition 1), a
    problem in ``v = p - w >= 0`` for the methods of `mtlbench.solvers.nonnegative`. The vector ``Jᵀ p`` is
    unique; ``p`` is where the gradients are independent. A gradient that is 0 adds nothing.

    Raises `SolverError` where ``G`` is not finite or not positive semidefinite, or ``tol`` is not reached.
    """
    cosines, lengths = cosines_and_lengths(gram, shortest_square(gram, "dual_cone_projection"))
    # A row of `starts` is of order one whatever the lengths: it holds what each unit gradient counts.
    starts = weights * lengths
    sizes = np.add.reduce(starts, axis=-1, keepdims=True)
    starts /= np.where(sizes > 0, sizes, 1.0)
    slacks = starts.dot(cosines)
    rows = slacks.reshape(-1, len(gram))
    added = np.zeros_like(rows)
    for row in (rows < 0).any(axis=1).nonzero()[0]:
        added[row] = nonnegative_correction(cosines, rows[row], "dual_cone_projection", tol)
    projections: Array = weights + added.reshape(slacks.shape) * sizes / lengths
    return projections


def nonnegative_correction(cosines: Array, slack: Array, method: str, tol: float) -> Array:
    """Return ``v >= 0`` with ``s = C v + slack >= 0`` and ``v s = 0``.

    cosines: C ``[T, T]``, with a diagonal of ones. slack: the products ``[T]`` before it, of order
    one and with a solution, as those of a vector with the unit gradients have. Raises `SolverError` for
    ``method`` where the complementarity is violated by more than ``tol`` times ``1 + sum(v)``.
    """
    residual = math.inf
    for solve in (block_pivoting, lawson_hanson):
        correction = solve(cosines, -slack)
        if correction is not None:
            error = np.minimum(correction, cosines.dot(correction) + slack)
            residual = float(np.abs(error).max() / (1 + np.add.reduce(correction)))
            if residual <= tol:
                return correction
    raise not_reached(method, residual, tol)
