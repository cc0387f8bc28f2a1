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
    added = _added(cosines, slacks, tol) * sizes / lengths
    projections: Array = weights + added
    return projections


def _added(cosines: Array, slacks: Array, tol: float) -> Array:
    """Return the ``v >= 0`` ``[..., T]`` with ``C v + slack >= 0`` and a product of 0, for each row."""
    if len(cosines) == 2:  # at most one of two vectors' slacks is negative, and filling it opens no other
        if not (beyond := -1 - cosines.item(0, 1)) <= tol:
            raise not_reached("dual_cone_projection", beyond, tol)
        closed_form: Array = np.maximum(-slacks, 0)
        return closed_form
    if slacks.ndim == 1:
        return _pivot_alone(cosines, slacks, tol)
    added = _pivot_together(cosines, slacks)
    unsolved = _residual(added, added.dot(cosines) + slacks) > tol
    for row in unsolved.nonzero()[0]:
        added[row] = _pivot_alone(cosines, slacks[row], tol)
    return added


def _pivot_alone(cosines: Array, slack: Array, tol: float) -> Array:
    """Do so for one row ``[T]``, or raise `SolverError`."""
    residual = math.inf
    for solve in (block_pivoting, lawson_hanson):
        added = solve(cosines, -slack)
        if added is not None:
            residual = float(_residual(added, cosines.dot(added) + slack))
            if residual <= tol:
                return added
    raise not_reached("dual_cone_projection", residual, tol)


def _pivot_together(cosines: Array, slacks: Array) -> Array:
    """Solve for all rows of ``slacks`` ``[K, T]`` at once, or say nothing about some; the caller judges.

    The pivoting of `block_pivoting`, where each round solves K systems in one call and goes on with those
    that are not done: for small T it is calls, not arithmetic, that take the time.
    """
    unit, added = np.eye(len(cosines)), np.zeros_like(slacks)
    rows, left, passive = np.arange(len(slacks)), slacks, slacks < -ROUNDING
    for _ in range(2 + len(cosines) // 2):
        systems = np.where(passive[:, :, None] & passive[:, None, :], cosines, unit)
        try:
            found = np.linalg.solve(systems, np.where(passive, -left, 0.0)[:, :, None])[:, :, 0]
        except np.linalg.LinAlgError:
            break  # dependent gradients: alone, each row has a method for them
        added[rows] = found
        wrong: NDArray[np.bool_] = np.where(passive, found, found.dot(cosines) + left) < -ROUNDING
        going = np.logical_or.reduce(wrong, axis=1).nonzero()[0]
        if len(going) == 0:
            break
        rows, left, passive = rows[going], left[going], (passive ^ wrong)[going]
    return np.maximum(added, 0)


def _residual(added: Array, slack: Array) -> Array:
    """Return how far from complementary unknowns and slacks ``[..., T]`` are, relative to ``1 + sum(v)``."""
    error = np.maximum.reduce(np.abs(np.minimum(added, slack)), axis=-1)
    residual: Array = error / (1 + np.add.reduce(added, axis=-1))
    return residual
