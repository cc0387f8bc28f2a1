"""Gradient surgery in the space of coefficients: PCGrad and GradVac from a Gram matrix.

Every task's gradient is carried as its products with the unit vectors of all tasks. A meeting of two tasks
reads one product and mostly changes nothing.
"""

from __future__ import annotations

from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray

from mtlbench.compiled import compiled
from mtlbench.solvers.gram import cosines_and_lengths, failure, least_square

Array = NDArray[np.float64]

STEEPEST = 1 - 1e-6
"""No target cosine of `vaccinate` counts as more: reaching 1 takes an infinite multiple of the partner."""

_VANISHED = 1e-6
"""A sum of vectors that is shorter than this share of the sum of its parts' lengths has no direction."""


def project_conflicts(gram: Array, draws: Array) -> Array:
    """Return the weights ``[T]`` of the sum of all gradients after PCGrad's projections.

    gram: ``G = J Jᵀ`` ``[T, T]``. draws: ``[T, T]``; task i meets the others j by rising ``draws[i, j]``.

    Raises `SolverError` where G is not finite or has a negative diagonal.
    """
    weights, solved = _project_conflicts(gram, draws)
    if not solved:
        raise failure("pcgrad", gram, inf, 0)
    return weights


def vaccinate(gram: Array, draws: Array, targets: Array, beta: float) -> Array:
    """Return the weights ``[T]`` of the sum of all gradients after GradVac; ``targets`` move in their place.

    gram, draws: as for `project_conflicts`. targets: ``[T, T]``, the cosines that task i (row) should have
    with its partner j (column); where a cosine is below, a multiple of g_j is added that brings it there.
    beta: how far targets move towards the cosine that was found. A gradient of length 0, or one that its
    partners have cancelled, has no cosine: it is left as it is, and so is its target.

    Raises `SolverError` where G is not finite or has a negative diagonal; targets are then as they were.
    """
    weights, solved = _vaccinate(gram, draws, targets, float(beta))
    if not solved:
        raise failure("gradvac", gram, inf, 0)
    return weights


@compiled()
def others_in_order(values: Array) -> NDArray[np.int64]:
    """Return ``[T, T - 1]``: in row i all others than i, by rising ``values`` ``[T, T]`` of that row."""
    count = len(values)
    order = np.empty((count, count - 1), dtype=np.int64)
    for i in range(count):
        placed = 0
        for j in range(count):
            if j != i:
                place = placed
                while place > 0 and values[i, order[i, place - 1]] > values[i, j]:
                    order[i, place] = order[i, place - 1]
                    place -= 1
                order[i, place] = j
                placed += 1
    return order


@compiled()
def _project_conflicts(gram: Array, draws: Array) -> tuple[Array, bool]:
    count, shortest = len(gram), least_square(gram)
    if not shortest >= 0:
        return np.ones(count), False
    cosines, lengths = cosines_and_lengths(gram, shortest)
    order, added, products = others_in_order(draws), np.zeros(count), np.empty(count)
    for i in range(count):
        products[:] = cosines[i]
        for j in order[i]:
            product = products[j]
            if product < 0:
                added[j] -= lengths[i] * product
                for k in range(count):
                    products[k] -= product * cosines[j, k]
    return 1 + added / lengths, True


@compiled()
def _vaccinate(gram: Array, draws: Array, targets: Array, beta: float) -> tuple[Array, bool]:
    count, shortest = len(gram), least_square(gram)
    if not shortest >= 0:
        return np.ones(count), False
    cosines, lengths = cosines_and_lengths(gram, shortest)
    order, added, products = others_in_order(draws), np.zeros(count), np.empty(count)
    for i in range(count):
        if gram[i, i] == 0:
            continue
        products[:] = cosines[i]
        length = parts = 1.0  # what task i's gradient is a sum of, in units of its own length
        for j in order[i]:
            if gram[j, j] == 0:
                continue
            found = min(max(products[j] / length, -1.0), 1.0)
            target = targets[i, j]
            targets[i, j] += beta * (found - target)
            wanted = min(target, STEEPEST)
            if found < wanted:
                # The partner's direction leaves what is at right angles to it: length times sine is kept.
                growth = sqrt((1 - found * found) / (1 - wanted * wanted))
                step = length * (wanted * growth - found)
                length *= growth
                parts += step
                added[j] += lengths[i] * step
                if length <= _VANISHED * parts:
                    break  # cancelled: without a direction it has a cosine with nobody
                for k in range(count):
                    products[k] += step * cosines[j, k]
    return 1 + added / lengths, True
