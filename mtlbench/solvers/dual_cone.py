"""Projections on the dual cone of the task gradients: the nearest vectors that conflict with no task."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mtlbench.solvers.gram import cosines_and_lengths, not_reached, shortest_square
from mtlbench.solvers.nonnegative import ROUNDING, block_pivoting, lawson_hanson

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
    conflicting = (rows < -ROUNDING).any(axis=1).nonzero()[0]
    if len(conflicting) > 1:
        added[conflicting], solved = _pivot_together(cosines, rows[conflicting], tol)
        conflicting = conflicting[~solved]
    for row in conflicting:
        added[row] = _pivot_alone(cosines, rows[row], tol)
    projections: Array = weights + added.reshape(slacks.shape) * sizes / lengths
    return projections


def _pivot_alone(cosines: Array, slack: Array, tol: float) -> Array:
    """Return ``v >= 0`` with ``C v + slack >= 0`` and a product of 0, or raise `SolverError`."""
    residual = math.inf
    for solve in (block_pivoting, lawson_hanson):
        added = solve(cosines, -slack)
        if added is not None:
            residual = float(_residual(added, cosines.dot(added) + slack))
            if residual <= tol:
                return added
    raise not_reached("dual_cone_projection", residual, tol)


def _pivot_together(cosines: Array, slacks: Array, tol: float) -> tuple[Array, NDArray[np.bool_]]:
    """Solve for all rows of ``slacks`` ``[K, T]`` at once; return ``[K, T]`` and which rows are solved.

    The pivoting of `block_pivoting`, where each round solves K systems in one call and goes on with those
    that are not done: for small T it is calls, not arithmetic, that take the time.
    """
    unit = np.eye(len(cosines))
    added, solved = np.zeros_like(slacks), np.zeros(len(slacks), dtype=bool)
    rows = np.arange(len(slacks))
    passive = slacks < -ROUNDING
    for _ in range(2 + len(cosines) // 2):
        left = slacks[rows]
        systems = np.where(passive[:, :, None] & passive[:, None, :], cosines, unit)
        try:
            found = np.linalg.solve(systems, np.where(passive, -left, 0.0)[:, :, None])[:, :, 0]
        except np.linalg.LinAlgError:
            break  # dependent gradients: alone, each row has a method for them
        slack = left + found.dot(cosines)
        wrong = np.where(passive, found, slack) < -ROUNDING
        going = wrong.any(axis=1)
        done = rows[~going]
        found = np.maximum(found[~going], 0)
        added[done] = found
        solved[done] = _residual(found, slack[~going]) <= tol
        if len(done) == len(rows):
            break
        rows, passive = rows[going], (passive ^ wrong)[going]
    return added, solved


def _residual(added: Array, slack: Array) -> Array:
    """Return how far from complementary unknowns and slacks ``[..., T]`` are, relative to ``1 + sum(v)``."""
    error = np.maximum.reduce(np.abs(np.minimum(added, slack)), axis=-1)
    residual: Array = error / (1 + np.add.reduce(added, axis=-1))
    return residual
