"""Small quadratic programs with non-negative unknowns, the machinery under the cone solvers.

Both methods minimise ``vᵀ A v / 2 - bᵀ v`` subject to ``v >= 0``, where A is positive semidefinite with a
diagonal of order one. There ``v >= 0``, ``A v - b >= 0`` and their product is 0.

`block_pivoting` (Portugal, Júdice & Vicente, Mathematics of Computation 63, 1994) takes a handful of small
Cholesky factorisations and gives up where dependent columns keep it from ending. `lawson_hanson` (1974,
chapter 23) shortens the objective in every round, one index at a time. Neither judges its answer: the
caller does, by the residual of the problem it really solves.

All are kernels, for kernels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mtlbench.compiled import compiled
from mtlbench.solvers.cholesky import factorise, substitute

Array = NDArray[np.float64]

_TINY = float(np.finfo(np.float64).tiny)

ROUNDING = 1e-13
"""What counts as zero in unknowns and slacks that are of order one."""

_RIDGE = 1e-14
"""What keeps a Cholesky factorisation from failing on columns that depend on each other within rounding."""


@compiled()
def block_pivoting(matrix: Array, bound: Array) -> tuple[Array, bool]:
    """Exchange all wrong indices at once while that helps; return unknowns, and whether it did to the end.

    matrix: A ``[T, T]``. bound: b ``[T]``. The first guess is that all unknowns with a positive bound, which
    are those that leave 0 at first, are positive.
    """
    count = len(bound)
    unknowns, factor, passive = np.empty(count), np.empty((count, count)), np.empty(count, np.bool_)
    for i in range(count):
        passive[i] = bound[i] > ROUNDING
    fewest, patience = count + 1, 3
    while patience > 0 and solve_on(passive, matrix, bound, unknowns, factor):
        wrong = 0
        for i in range(count):
            value = unknowns[i] if passive[i] else product(matrix[i], unknowns) - bound[i]
            if value < -ROUNDING:
                passive[i] = not passive[i]
                wrong += 1
        if wrong == 0:
            for i in range(count):
                unknowns[i] = max(unknowns[i], 0.0)
            return unknowns, True
        if wrong < fewest:
            fewest, patience = wrong, 3
        else:
            patience -= 1
    return unknowns, False


@compiled()
def lawson_hanson(matrix: Array, bound: Array) -> Array:
    """Let in the most violated index, let out what turns negative; each round lowers the objective.

    Columns may depend on each other: A is solved with a diagonal larger by 1e-14, which changes the slacks
    by that times the unknowns.
    """
    count = len(bound)
    matrix, factor = matrix.copy(), np.empty((count, count))
    for i in range(count):
        matrix[i, i] += _RIDGE
    unknowns, dependent = np.zeros(count), np.zeros(count, np.bool_)
    for _ in range(30 * count):
        new, slack = count, ROUNDING
        for i in range(count):
            if unknowns[i] <= 0 and not dependent[i]:
                found = bound[i] - product(matrix[i], unknowns)
                if found > slack:
                    new, slack = i, found
        if new == count:
            break
        if _nonnegative_step(matrix, bound, unknowns, new, factor):
            dependent.fill(False)
        else:
            dependent[new] = True
    return unknowns


@compiled()
def _nonnegative_step(matrix: Array, bound: Array, unknowns: Array, new: int, factor: Array) -> bool:
    """Move ``unknowns`` to the minimiser on the face that is reached when ``new`` may be positive too.

    False, and nothing moved, where ``new`` does not become positive: then its column depends on the others
    within rounding.
    """
    count = len(unknowns)
    reached, target, passive = unknowns.copy(), np.empty(count), np.empty(count, np.bool_)
    for i in range(count):
        passive[i] = i == new or unknowns[i] > 0
    while passive[new] and solve_on(passive, matrix, bound, target, factor):
        leaving, least = -1, np.inf
        for i in range(count):
            if passive[i] and target[i] <= 0:
                step = reached[i] / max(reached[i] - target[i], _TINY)
                if step < least:
                    leaving, least = i, step
        if leaving < 0:
            for i in range(count):
                unknowns[i] = target[i]
            return True
        for i in range(count):
            reached[i] = max(reached[i] + least * (target[i] - reached[i]), 0.0)
        reached[leaving] = 0.0
        passive[leaving] = False
    return False


@compiled()
def solve_on(passive: NDArray[np.bool_], matrix: Array, bound: Array, found: Array, factor: Array) -> bool:
    """Write to ``found`` ``[T]`` the solution of ``A x = b`` on the passive indices, and 0 on the others.

    factor: ``[T, T]`` to work with. False where the columns of the passive indices are dependent.
    """
    chosen, solution, count = np.empty(len(bound), np.int64), np.empty(len(bound)), 0
    for i in range(len(bound)):
        if passive[i]:
            chosen[count], solution[count] = i, bound[i]
            count += 1
    if not factorise(matrix, chosen[:count], factor):
        return False
    substitute(factor, solution[:count])
    found.fill(0.0)
    for i in range(count):
        found[chosen[i]] = solution[i]
    return True


@compiled(reorder=True)
def product(row: Array, vector: Array) -> float:
    """Return ``row · vector``."""
    total = 0.0
    for i in range(len(row)):
        total += row[i] * vector[i]
    return total
