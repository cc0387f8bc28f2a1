"""The bargain of Nash-MTL and its alpha-fair relatives: weights that solve ``G w = w^(-1/alpha)``."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mtlbench.compiled import compiled
from mtlbench.solvers.cholesky import factorise, substitute
from mtlbench.solvers.gram import cosines_and_lengths, failure, least_square, within_rounding
from mtlbench.solvers.nonnegative import product

Array = NDArray[np.float64]

_RIDGE = 1e-12
"""Relative increase of every gradient's square. A Pareto-stationary point has no bargain; with this one there
always is a unique one, whose error is far below the tolerance."""

_ROUNDS = 200
"""Newton steps before the residual is judged. Ordinary matrices take about five; where gradients cancel,
rounding errors keep the steps from getting small."""


@within_rounding
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

    Raises `SolverError` where ``G`` is not finite or not positive semidefinite, or ``tol`` is not reached; a
    matrix that lacks that by rounding alone is mended first (`within_rounding`).
    """
    weights, residual = _fair_weights(gram, 1 / alpha)
    if not residual <= tol:
        raise failure("fair_weights", gram, residual, tol)
    return weights


@compiled()
def _fair_weights(gram: Array, power: float) -> tuple[Array, float]:
    """Return the weights and their residual, NaN where the matrix cannot be solved."""
    weights, shortest = np.ones(len(gram)), least_square(gram)
    if not shortest >= 0:
        return weights, np.nan
    cosines, lengths = cosines_and_lengths(gram, shortest)
    if shortest > 0:
        return _solve(cosines, lengths, power)
    present = np.diag(gram).nonzero()[0]
    if len(present) == 0:
        return weights, 0.0
    part = np.empty((len(present), len(present)))
    for i in range(len(present)):
        for j in range(len(present)):
            part[i, j] = cosines[present[i], present[j]]
    found, residual = _solve(part, lengths[present], power)
    weights[:] = found.max()
    weights[present] = found
    return weights, residual


@compiled()
def _solve(cosines: Array, lengths: Array, power: float) -> tuple[Array, float]:
    """Solve ``C x = m b^-p`` for ``x = m b``, with C of ones on its diagonal and the largest m equal to 1.

    That is where ``xᵀ C x / 2 - sum_i m_i² φ(b_i)``, ``φ'(b) = b^-p``, has its minimum. With
    ``e = b^((p + 1)/2)`` Newton's step is ``e y`` where ``(E C E + p) y = e (m b^-p - C x)``.
    """
    count = len(lengths)
    everyone = np.arange(count)
    ridged, matrix, factor = cosines.copy(), np.empty((count, count)), np.empty((count, count))
    masses = lengths ** ((power - 1) / (power + 1))
    masses /= masses.max()
    for i in range(count):
        ridged[i, i] += _RIDGE
    # Start from the best vector with equal b: for two tasks and alpha 1 it is the solution.
    total, square = 0.0, 0.0
    for i in range(count):
        total += masses[i] * masses[i]
        square += masses[i] * product(ridged[i], masses)
    b = np.full(count, (total / max(square, _RIDGE * total)) ** (1 / (power + 1)))
    gains, trial, slope, root = np.empty(count), np.empty(count), np.empty(count), np.empty(count)
    _slope(ridged, masses, b, power, gains, slope)
    for _ in range(_ROUNDS):
        for i in range(count):
            root[i] = math.sqrt(b[i] / gains[i])
        for i in range(count):
            for j in range(count):
                matrix[i, j] = root[i] * ridged[i, j] * root[j]
            matrix[i, i] += power
        if not factorise(matrix, everyone, factor):
            break
        step = root * slope
        substitute(factor, step)
        step *= root
        decrease = product(slope, step)
        relative = step / (masses * b)
        largest = max(relative.max(), -relative.min()) * (power + 1)
        if largest < 1e-10:
            b *= 1 + relative
            break
        length = min(1.0, 0.9 / max(-relative.min(), 0.9))
        while True:
            trial[:] = b * (1 + length * relative)
            _slope(ridged, masses, trial, power, gains, slope)
            # Short steps do not overshoot, and products with them are mostly rounding errors.
            if largest < 1e-2 or product(slope, step) >= -0.5 * decrease or length < 1e-6:
                break
            length /= 2
        b[:] = trial
    x, residual = masses * b, 0.0
    for i in range(count):
        wanted, found, size = masses[i] * _inverse(b[i], power), 0.0, 0.0
        for j in range(count):
            found += cosines[i, j] * x[j]
            size += abs(cosines[i, j] * x[j])
        error = abs(found - wanted) / (size + wanted)
        if not error <= residual:  # NaN is no solution either
            residual = error
    return b * lengths ** (-2 / (power + 1)), residual


@compiled()
def _slope(ridged: Array, masses: Array, b: Array, power: float, gains: Array, slope: Array) -> None:
    """Write ``b^-p`` to ``gains`` and ``m b^-p - C x`` to ``slope``."""
    x = masses * b
    for i in range(len(b)):
        gains[i] = _inverse(b[i], power)
        slope[i] = masses[i] * gains[i] - product(ridged[i], x)


@compiled()
def _inverse(value: float, power: float) -> float:
    """Return ``value^-power``; with a power of 1, the usual one, at once."""
    return 1 / value if power == 1 else value**-power
