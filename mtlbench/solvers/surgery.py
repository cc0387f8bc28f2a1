"""Gradient surgery in the space of coefficients: PCGrad and GradVac from a Gram matrix."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mtlbench.solvers.gram import cosines_and_lengths, shortest_square

Array = NDArray[np.float64]
Order = NDArray[np.int64]

STEEPEST = 1 - 1e-6
"""No target cosine of `vaccinate` counts as more: reaching 1 takes an infinite multiple of the partner."""

_VANISHED = 1e-12
"""A sum of vectors whose squared length is below this share of what its parts could make has no direction."""


def project_conflicts(gram: Array, order: Order) -> Array:
    """Return the weights ``[T]`` of the sum of all gradients after PCGrad's projections.

    gram: ``G = J Jᵀ`` ``[T, T]``. order: ``[T, T - 1]``, whose row i lists the partners of task i in the
    order in which it meets them. Every task's gradient is carried as coefficients on the unit vectors of all
    tasks, and all tasks take their k-th partner at once: T - 1 vectorised steps.
    """
    cosines, lengths = cosines_and_lengths(gram, shortest_square(gram, "pcgrad"))
    tasks = np.arange(len(gram))
    coefficients, products = np.eye(len(gram)), cosines.copy()
    for partner in order.T:
        conflict = np.minimum(products[tasks, partner], 0)
        coefficients[tasks, partner] -= conflict
        products -= conflict[:, None] * cosines[partner]
    weights: Array = lengths @ coefficients / lengths
    return weights


def vaccinate(gram: Array, order: Order, targets: Array, beta: float) -> tuple[Array, Array]:
    """Return the weights ``[T]`` of the sum of all gradients after GradVac, and the new targets ``[T, T]``.

    gram, order: as for `project_conflicts`. targets: the cosines that task i (row) should have with its
    partner j (column); where a cosine is below, a multiple of g_j is added that brings it there. beta: how
    far targets move towards the cosine that was found. A gradient of length 0, or one that its partners
    have cancelled, has no cosine: it is left as it is, and so is its target.
    """
    cosines, lengths = cosines_and_lengths(gram, shortest_square(gram, "gradvac"))
    real, tasks = gram.diagonal() > 0, np.arange(len(gram))
    targets, coefficients, products = targets.copy(), np.eye(len(gram)), cosines.copy()
    for partner in order.T:
        square = (coefficients * products).sum(1)
        known = real & real[partner] & (square > _VANISHED * np.abs(coefficients).sum(1) ** 2)
        length = np.sqrt(np.where(known, square, 1.0))
        found = np.clip(products[tasks, partner] / length, -1, 1)
        target = targets[tasks, partner]
        wanted = np.minimum(target, STEEPEST)
        short = known & (found < wanted)
        sine = np.sqrt(np.where(short, 1 - wanted**2, 1.0))
        added = np.where(short, length * (wanted * np.sqrt(1 - found**2) / sine - found), 0.0)
        coefficients[tasks, partner] += added
        products += added[:, None] * cosines[partner]
        targets[tasks, partner] += np.where(known, beta * (found - target), 0.0)
    weights: Array = lengths @ coefficients / lengths
    return weights, targets
