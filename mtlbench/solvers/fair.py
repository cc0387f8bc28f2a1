"""The bargain of Nash-MTL and its alpha-fair relatives: weights that solve ``G w = w^(-1/alpha)``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv

from mtlbench.solvers.gram import cosines_and_lengths, not_reached, shortest_square

Array = NDArray[np.float64]

_RIDGE = 1e-12
"""Relative increase of every gradient's square. A Pareto-stationary point has no bargain; with this one there
always is a unique one, whose error is far below the tolerance."""

_ROUNDS = 200
"""Newton steps before the residual is judged. Ordinary matrices take about five; where gradients cancel,
rounding errors keep the steps from getting small."""


def fair_weights(gram: Array, alpha: float = 1.0, *, tol: float = 1e-9) -> Array:
    """Return the weights ``w > 0`` ``[T]`` with ``(G w)_i = w_i^(-1/alpha)`` for all tasks i.

    gram: ``G = J Jᵀ`` ``[T, T]``, float64, of any scale. alpha: above 0; 1 is the Nash bargaining solution.
    tol: the largest relative residual that is accepted: how far an equation is from holding, relative to the
    sum of the sizes of its terms, so that it says by how much G would have to change.

    Multiplied by c² the matrix has the weights times ``c^(-2 alpha / (1 + alpha))``. Where gradients cancel
    (``G w = 0`` for a ``w >= 0``, a Pareto-stationary point) there is no solution; returned is that of a
    matrix whose diagonal is larger by 1e-12: large weights, whose update is 0 to rounding. A gradient of
    length 0 has no equation; it is given the largest of the other weights, and all have 1 where all are 0.

    The equations are the stationarity of a strictly convex function, minimised by Newton's method in
    ``b_i = w_i |g_i|^(2/(1 + p))``, ``p = 1/alpha``, which are of order one whatever the lengths. A step is
    scaled so that its matrix has no eigenvalue below p, and is shortened while it overshoots.

    Raises `SolverError` where ``G`` is not finite or not positive semidefinite, or ``tol`` is not reached.
    """
    shortest = shortest_square(gram, "fair_weights")
    cosines, lengths = cosines_and_lengths(gram, shortest)
    present = gram.diagonal() > 0
    if shortest > 0:
        return _solve(cosines, lengths, alpha, tol)
    weights = np.ones(len(gram))
    if present.any():
        chosen = present.nonzero()[0]
        found = _solve(cosines[np.ix_(chosen, chosen)], lengths[chosen], alpha, tol)
        weights[:] = found.max()
        weights[chosen] = found
    return weights


def _solve(cosines: Array, lengths: Array, alpha: float, tol: float) -> Array:
    """Solve ``C x = m b^-p`` for ``x = m b``, with C of ones on its diagonal and the largest m equal to 1.

    That is where ``xᵀ C x / 2 - sum_i m_i² φ(b_i)``, ``φ'(b) = b^-p``, has its minimum. With
    ``e = b^((p + 1)/2)`` Newton's step is ``e y`` where ``(E C E + p) y = e (m b^-p - C x)``.
    """
    power = 1 / alpha
    masses = lengths ** ((power - 1) / (power + 1))
    masses /= np.maximum.reduce(masses)
    diagonal = slice(None, None, len(cosines) + 1)
    ridged = cosines.copy()
    ridged.flat[diagonal] += _RIDGE
    # Start from the best vector with equal b: for two tasks and alpha 1 it is the solution.
    total = masses.dot(masses)
    square = max(masses.dot(ridged).dot(masses), _RIDGE * total)
    b = np.full(len(cosines), (total / square) ** (1 / (power + 1)))
    slope = masses * b**-power - ridged.dot(masses * b)
    for _ in range(_ROUNDS):
        root = b ** ((power + 1) / 2)
        matrix = root[:, None] * ridged * root
        matrix.flat[diagonal] += power
        _, solution, info = dposv(matrix, root * slope)
        if info != 0:
            break
        step = root * solution
        relative = step / (masses * b)
        largest = np.maximum.reduce(np.abs(relative))
        if largest * (power + 1) < 1e-7:
            b = b * (1 + relative)
            break
        decrease = slope.dot(step)
        length = min(1.0, 0.9 / max(-np.minimum.reduce(relative), 0.9))
        while True:
            trial = b * (1 + length * relative)
            slope = masses * trial**-power - ridged.dot(masses * trial)
            if slope.dot(step) >= -0.5 * decrease or length < 1e-6:
                break
            length /= 2
        b = trial
    x = masses * b
    wanted = masses * b**-power
    found, size = cosines.dot(x), np.abs(cosines).dot(x)
    residual = float(np.maximum.reduce(np.abs(found - wanted) / (size + wanted)))
    if not residual <= tol:
        raise not_reached("fair_weights", residual, tol)
    weights: Array = b * lengths ** (-2 / (power + 1))
    return weights
