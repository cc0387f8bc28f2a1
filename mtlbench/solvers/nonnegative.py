"""Small quadratic programs with non-negative unknowns, the machinery under the cone solvers.

Both methods minimise ``vᵀ A v / 2 - bᵀ v`` subject to ``v >= 0``, where A is positive semidefinite with a
diagonal of order one. There ``v >= 0``, ``A v - b >= 0`` and their product is 0.

`block_pivoting` (Portugal, Júdice & Vicente, Mathematics of Computation 63, 1994) takes a handful of small
Cholesky factorisations and gives up where dependent columns keep it from ending. `lawson_hanson` (1974,
chapter 23) shortens the objective in every round, one index at a time. Neither judges its answer: the
caller does, by the residual of the problem it really solves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv

Array = NDArray[np.float64]

ROUNDING = 1e-13
"""What counts as zero in unknowns and slacks that are of order one."""

_RIDGE = 1e-14
"""What keeps a Cholesky factorisation from failing on columns that depend on each other within rounding."""


def block_pivoting(matrix: Array, bound: Array) -> Array | None:
    """Exchange all wrong indices at once while that helps; give up (None) where it does not.

    matrix: A ``[T, T]``. bound: b ``[T]``. The first guess is that all unknowns with a positive bound, which
    are those that leave 0 at first, are positive.
    """
    count = len(bound)
    passive = bound > ROUNDING
    fewest, patience = count + 1, 3
    while patience:
        chosen = passive.nonzero()[0]
        solution = _solve(matrix, bound, chosen)
        if solution is None:
            return None
        if len(chosen) == count:
            unknowns, wrong = solution, solution < -ROUNDING
        else:
            unknowns = np.zeros(count)
            unknowns[chosen] = solution
            wrong = np.where(passive, unknowns, matrix.dot(unknowns) - bound) < -ROUNDING
        amount = int(np.count_nonzero(wrong))
        if amount == 0:
            return np.maximum(unknowns, 0)
        if amount < fewest:
            fewest, patience = amount, 3
        else:
            patience -= 1
        passive ^= wrong
    return None


def lawson_hanson(matrix: Array, bound: Array) -> Array:
    """Let in the most violated index, let out what turns negative; each round lowers the objective.

    Columns may depend on each other: A is solved with a diagonal larger by 1e-14, which changes the slacks
    by that times the unknowns.
    """
    count = len(bound)
    matrix = matrix + _RIDGE * np.eye(count)
    unknowns = np.zeros(count)
    dependent = np.zeros(count, dtype=bool)
    for _ in range(30 * count):
        slack = bound - matrix.dot(unknowns)
        slack[(unknowns > 0) | dependent] = -np.inf
        new = slack.argmax()
        if slack[new] <= ROUNDING:
            break
        step = _nonnegative_step(matrix, bound, unknowns, new)
        if step is None:
            dependent[new] = True
        else:
            unknowns = step
            dependent[:] = False
    return unknowns


def _nonnegative_step(matrix: Array, bound: Array, unknowns: Array, new: np.intp) -> Array | None:
    """Return the minimiser on the face that is reached from ``unknowns`` when ``new`` may be positive too.

    None where ``new`` does not become positive: then its column depends on the others within rounding.
    """
    passive = unknowns > 0
    passive[new] = True
    while passive[new]:
        chosen = passive.nonzero()[0]
        solution = _solve(matrix, bound, chosen)
        if solution is None:
            return None
        target = np.zeros_like(unknowns)
        target[chosen] = solution
        outside = (passive & (target <= 0)).nonzero()[0]
        if len(outside) == 0:
            return target
        steps = unknowns[outside] / np.maximum(unknowns[outside] - target[outside], np.finfo(float).tiny)
        unknowns = np.maximum(unknowns + steps.min() * (target - unknowns), 0)
        unknowns[outside[steps.argmin()]] = 0
        passive[outside[steps.argmin()]] = False
    return None


def _solve(matrix: Array, bound: Array, chosen: NDArray[np.intp]) -> Array | None:
    """Solve on the chosen indices by Cholesky; None where their columns are dependent."""
    if len(chosen) == 0:
        return np.zeros(0)
    if len(chosen) < len(bound):
        matrix, bound = matrix.take(chosen, 0).take(chosen, 1), bound.take(chosen)
    _, solution, info = dposv(matrix, bound)
    return solution if info == 0 else None
