"""Gradient surgery in the space of coefficients: PCGrad and GradVac from a Gram matrix.

Every task's gradient is carried as its products with the unit vectors of all tasks. A meeting of two tasks
reads one product and mostly changes nothing: plain floats are several times faster at that than arrays of a
handful of numbers.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import NDArray

from mtlbench.solvers.gram import cosines_and_lengths, shortest_square

Array = NDArray[np.float64]
Order = NDArray[np.int64]

STEEPEST = 1 - 1e-6
"""No target cosine of `vaccinate` counts as more: reaching 1 takes an infinite multiple of the partner."""

_VANISHED = 1e-6
"""A sum of vectors that is shorter than this share of the sum of its parts' lengths has no direction."""


def project_conflicts(gram: Array, order: Order) -> Array:
    """Return the weights ``[T]`` of the sum of all gradients after PCGrad's projections.

    gram: ``G = J Jᵀ`` ``[T, T]``. order: ``[T, T - 1]``, whose row i lists the partners of task i in the
    order in which it meets them.
    """
    cosines, lengths = cosines_and_lengths(gram, shortest_square(gram, "pcgrad"))
    rows, sizes = cosines.tolist(), lengths.tolist()
    added = [0.0] * len(rows)
    for products, size, partners in zip(rows, sizes, order.tolist(), strict=True):
        for j in partners:
            product = products[j]
            if product < 0:
                added[j] -= size * product
                products = [a - product * b for a, b in zip(products, rows[j], strict=True)]
    weights: Array = 1 + np.array(added) / lengths
    return weights


def vaccinate(gram: Array, order: Order, targets: Array, beta: float) -> tuple[Array, Array]:
    """Return the weights ``[T]`` of the sum of all gradients after GradVac, and the new targets ``[T, T]``.

    gram, order: as for `project_conflicts`. targets: the cosines that task i (row) should have with its
    partner j (column); where a cosine is below, a multiple of g_j is added that brings it there. beta: how
    far targets move towards the cosine that was found. A gradient of length 0, or one that its partners
    have cancelled, has no cosine: it is left as it is, and so is its target.
    """
    cosines, lengths = cosines_and_lengths(gram, shortest := shortest_square(gram, "gradvac"))
    rows, sizes, moved = cosines.tolist(), lengths.tolist(), targets.tolist()
    absent = set() if shortest > 0 else set((gram.diagonal() == 0).nonzero()[0].tolist())
    added = [0.0] * len(rows)
    for i, partners in enumerate(order.tolist()):
        if i in absent:
            continue
        products, targeted, size = rows[i], moved[i], sizes[i]
        length = parts = 1.0  # what task i's gradient is a sum of, in units of its own length
        for j in partners:
            if j in absent:
                continue
            found = products[j] / length
            if found > 1:
                found = 1.0
            elif found < -1:
                found = -1.0
            target = targeted[j]
            targeted[j] += beta * (found - target)
            wanted = target if target < STEEPEST else STEEPEST
            if found < wanted:
                # The partner's direction leaves what is at right angles to it: length times sine is kept.
                growth = sqrt((1 - found * found) / (1 - wanted * wanted))
                step = length * (wanted * growth - found)
                length *= growth
                parts += step
                added[j] += size * step
                if length <= _VANISHED * parts:
                    break  # cancelled: without a direction it has a cosine with nobody
                products = [a + step * b for a, b in zip(products, rows[j], strict=True)]
    weights: Array = 1 + np.array(added) / lengths
    return weights, np.array(moved)
