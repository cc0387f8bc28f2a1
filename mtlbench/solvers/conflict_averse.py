"""The update of CAGrad: near the mean gradient, as good as can be for the task that it serves worst."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtlbench.compiled import compiled
from mtlbench.solvers.cholesky import factorise, substitute
from mtlbench.solvers.gram import cosines_and_lengths, failure, least_square, within_rounding
from mtlbench.solvers.min_norm import solve_min_norm
from mtlbench.solvers.nonnegative import ROUNDING, block_pivoting, lawson_hanson, product

Array = NDArray[np.float64]

_UNRESOLVED = 1e-6
"""A sum of gradients that is shorter than this, relative to the sum of their lengths, counts as 0: in float32
its direction is noise, and in float64 the square in the Gram matrix loses twice as many digits."""

_MIN_NORM = 1e-9
"""The tolerance of the shortest vector that bounds the progress."""


@within_rounding
def conflict_averse_correction(gram: Array, radius: float, *, tol: float = 1e-9) -> Array:
    """Return ``z >= 0`` ``[T]`` for which ``d = g_0 + Jᵀ z`` has the largest ``min_i g_iᵀ d`` in a ball.

    gram: ``G = J Jᵀ`` ``[T, T]``, float64, of any scale. radius: c; the ball is the one around the mean
    gradient ``g_0`` with the radius ``c |g_0|``, 0 or more. tol: the largest optimality residual that is
    accepted, relative to the lengths of the gradients.

    In the terms of the paper (Liu et al., arXiv:2110.14048, equation 4) ``z = w c |g_0| / |g_w|`` with w the
    minimiser of  ``g_wᵀ g_0 + c |g_0| |g_w|``  on the simplex, ``g_w = Jᵀ w``. Where that minimum is 0 (at
    Pareto-stationary points) d is not unique; returned is the one that is nearest to ``g_0``, its
    projection on the dual cone.

    With the least progress ``ν = min_i g_iᵀ d`` as parameter, z solves a least-squares problem with
    non-negative unknowns, ``z >= 0, G z + G w_0 - ν >= 0`` and their product 0 (``w_0 = 1/T``), and ν is
    where ``|Jᵀ z|`` is the radius. On one support both have a closed form, and block pivoting over supports
    mostly ends at the solution. Else the convex function ``|Jᵀ z(ν)|`` is followed to its root by Newton
    steps, which come from the right and never pass it.

    Raises `SolverError` where ``G`` is not finite or not positive semidefinite, or ``tol`` is not reached; a
    matrix that lacks that by rounding alone is mended first (`within_rounding`).
    """
    gram, radius, residual = np.ascontiguousarray(gram), float(radius), math.nan
    for solve in (_by_pivoting, _by_newton):
        correction, residual = solve(gram, radius)
        if residual <= tol:
            return correction
    raise failure("conflict_averse_correction", gram, residual, tol)


class _Ball(NamedTuple):
    """The problem in a form whose numbers are of order one whatever the lengths of the gradients.

    cosines: C ``[T, T]``, between the gradients. mean: β ``[T]``, the cosines between them and the mean
    gradient. bound: ρ ``[T]``, the shortest length but 0 over each one's; 0 for a gradient of length 0.
    radius: c. factor: ``[T]``, by which the unknowns are multiplied in the end.

    Unknowns are ``u >= 0`` and ν with ``s = C u + β - ν ρ >= 0``, ``u s = 0`` and ``uᵀ C u = c²``.
    """

    cosines: Array
    mean: Array
    bound: Array
    radius: float
    factor: Array


@compiled()
def _by_pivoting(gram: Array, radius: float) -> tuple[Array, float]:
    """Return z and its residual: NaN where the matrix cannot be solved, infinite where this did not end."""
    ball = _ball(gram, radius)
    if not ball.radius > 0:
        return np.zeros(len(gram)), ball.radius
    return _correction(ball, *_pivot(ball))


@compiled()
def _by_newton(gram: Array, radius: float) -> tuple[Array, float]:
    """Do as `_by_pivoting`, where that found no solution."""
    ball = _ball(gram, radius)
    if not ball.radius > 0:
        return np.zeros(len(gram)), ball.radius
    return _correction(ball, *_newton(ball))


@compiled()
def _ball(gram: Array, radius: float) -> _Ball:
    """Return the problem; a radius of 0: the ball is a point within rounding, NaN: it cannot be solved."""
    count, shortest = len(gram), least_square(gram)
    if not shortest >= 0:
        return _Ball(gram, gram[0], gram[0], np.nan, gram[0])
    cosines, lengths = cosines_and_lengths(gram, shortest)
    parts, mean = np.empty(count), np.empty(count)
    for i in range(count):
        parts[i] = math.sqrt(gram[i, i]) / count
    total, square, least = 0.0, 0.0, np.inf
    for i in range(count):
        mean[i] = product(cosines[i], parts)
        total += parts[i]
        square += parts[i] * mean[i]
        if gram[i, i] > 0:
            least = min(least, lengths[i])
    length = math.sqrt(max(square, 0.0))
    if length <= _UNRESOLVED * total:
        return _Ball(cosines, mean, mean, 0.0, lengths)
    bound, factor = np.empty(count), np.empty(count)
    for i in range(count):
        mean[i] /= length
        bound[i] = least / lengths[i] if gram[i, i] > 0 else 0.0
        factor[i] = length / lengths[i]
    return _Ball(cosines, mean, bound, radius, factor)


@compiled()
def _correction(ball: _Ball, unknowns: Array, progress: float, found: bool) -> tuple[Array, float]:
    """Return z for the unknowns, in their place, and their residual: infinite where none were found."""
    residual = _residual(ball, unknowns, progress) if found else np.inf
    for i in range(len(unknowns)):
        unknowns[i] *= ball.factor[i]
    return unknowns, residual


@compiled()
def _residual(ball: _Ball, unknowns: Array, progress: float) -> float:
    """Return how far from optimal the unknowns are, relative to their sum, 0 at the optimum.

    The ball may have room left where ``progress``, ν, is 0: nothing better is feasible or unique.
    """
    error, size, outside = 0.0, 0.0, -(ball.radius**2)
    for i in range(len(unknowns)):
        along = product(ball.cosines[i], unknowns)
        wrong = abs(min(unknowns[i], along + ball.mean[i] - progress * ball.bound[i]))
        size += unknowns[i]
        outside += unknowns[i] * along
        if wrong > error or math.isnan(wrong):
            error = wrong
    if progress == 0:
        outside = max(outside, 0.0)
    # rounding errors of a square are relative to the square of the sum: they count 1e-5 of the others
    sphere = abs(outside) / (ball.radius**2 + 1e-5 * size**2)
    error /= 1 + size
    return error if error > sphere or math.isnan(error) else sphere


@compiled()
def _on(ball: _Ball, passive: NDArray[np.bool_], unknowns: Array, factor: Array) -> tuple[float, bool]:
    """Write the unknowns where only those of ``passive`` may be positive; return ν, and whether they exist.

    Where the support's plane stays out of the ball, ν is the one of the plane that comes nearest. factor:
    ``[T, T]`` to work with. False where no index is passive or their gradients depend on each other.
    """
    chosen, count = np.empty(len(passive), np.int64), 0
    along, across = np.empty(len(passive)), np.empty(len(passive))
    for i in range(len(passive)):
        if passive[i]:
            chosen[count], along[count], across[count] = i, ball.bound[i], ball.mean[i]
            count += 1
    if count == 0 or not factorise(ball.cosines, chosen[:count], factor):
        return np.nan, False
    substitute(factor, along[:count])
    substitute(factor, across[:count])
    square, mixed, other = 0.0, 0.0, -(ball.radius**2)
    for i in range(count):
        square += ball.bound[chosen[i]] * along[i]
        mixed += ball.bound[chosen[i]] * across[i]
        other += ball.mean[chosen[i]] * across[i]
    progress = (mixed + math.sqrt(max(mixed * mixed - square * other, 0.0))) / square
    unknowns.fill(0.0)
    for i in range(count):
        unknowns[chosen[i]] = progress * along[i] - across[i]
    return progress, True


@compiled()
def _pivot(ball: _Ball) -> tuple[Array, float, bool]:
    """Exchange all wrong indices of a support at once while that helps; False where it does not."""
    count = len(ball.mean)
    unknowns, factor, passive = np.empty(count), np.empty((count, count)), np.ones(count, np.bool_)
    fewest, patience, progress = count + 1, 3, np.nan
    for i in range(count):
        if ball.bound[i] == 0:
            return unknowns, progress, False
    while patience > 0:
        progress, found = _on(ball, passive, unknowns, factor)
        if not found:
            break
        wrong = 0
        for i in range(count):
            value = unknowns[i]
            if not passive[i]:
                value = product(ball.cosines[i], unknowns) + ball.mean[i] - progress * ball.bound[i]
            if value < -ROUNDING:
                passive[i] = not passive[i]
                wrong += 1
        if wrong == 0:
            size = _clip(unknowns)
            return unknowns, progress, ball.radius > _UNRESOLVED * size  # else they are stationary
        if wrong < fewest:
            fewest, patience = wrong, 3
        else:
            patience -= 1
    return unknowns, progress, False


@compiled()
def _clip(unknowns: Array) -> float:
    """Set to 0 what is negative, and return the sum of the rest."""
    size = 0.0
    for i in range(len(unknowns)):
        unknowns[i] = max(unknowns[i], 0.0)
        size += unknowns[i]
    return size


@compiled()
def _newton(ball: _Ball) -> tuple[Array, float, bool]:
    """Follow the convex function ``|Jᵀ z(ν)|`` from the right to where it is the radius."""
    count, progress = len(ball.mean), 0.0
    unknowns, found = _nearest(ball, progress)
    if not found:
        return unknowns, progress, False
    if _square(ball.cosines, unknowns) <= ball.radius**2:
        progress = _upper_bound(ball)
        if progress == 0:
            return unknowns, progress, True
    candidate, factor, passive = np.empty(count), np.empty((count, count)), np.empty(count, np.bool_)
    best, reached, least = unknowns, progress, np.inf
    for _ in range(100):
        unknowns, found = _nearest(ball, progress)
        if not found:
            break
        for i in range(count):
            passive[i] = unknowns[i] != 0
        exact, found = _on(ball, passive, candidate, factor)
        if found:
            _clip(candidate)
            if _residual(ball, candidate, exact) <= 1e-12:
                return candidate, exact, True
        residual = _residual(ball, unknowns, progress)
        if residual < least:
            best, reached, least = unknowns, progress, residual
        length = math.sqrt(max(_square(ball.cosines, unknowns), 0.0))
        slope = product(ball.bound, unknowns)
        if abs(length - ball.radius) <= 1e-12 * ball.radius or not slope > 0:
            break
        progress -= (length - ball.radius) * length / slope  # back again, where rounding led too far
    return best, reached, least < np.inf


@compiled()
def _square(cosines: Array, unknowns: Array) -> float:
    """Return the squared length of a sum of unit gradients."""
    square = 0.0
    for i in range(len(unknowns)):
        square += unknowns[i] * product(cosines[i], unknowns)
    return square


@compiled()
def _nearest(ball: _Ball, progress: float) -> tuple[Array, bool]:
    """Return the unknowns of the vector nearest to the mean gradient whose progress is ν or more.

    A least-distance problem: with ``h = ν ρ - β`` the unknowns are ``v / (1 - hᵀ v)`` for the minimiser
    ``v >= 0`` of ``vᵀ (C + h hᵀ) v / 2 - hᵀ v`` (Lawson & Hanson 1974, chapter 23.4), which is bounded also
    where gradients depend on each other. False where no such vector exists within rounding.
    """
    count, wanting = len(ball.mean), False
    wanted, matrix = np.empty(count), np.empty((count, count))
    for i in range(count):
        wanted[i] = progress * ball.bound[i] - ball.mean[i]
        wanting = wanting or wanted[i] > ROUNDING
    if not wanting:
        return np.zeros(count), True
    for i in range(count):
        for j in range(count):
            matrix[i, j] = ball.cosines[i, j] + wanted[i] * wanted[j]
    ray, ended = block_pivoting(matrix, wanted)
    if ended and _from_ray(ball.cosines, wanted, ray):
        return ray, True
    ray = lawson_hanson(matrix, wanted)
    return ray, _from_ray(ball.cosines, wanted, ray)


@compiled()
def _from_ray(cosines: Array, wanted: Array, ray: Array) -> bool:
    """Turn v of `_nearest` into unknowns, in its place; return whether they are a solution."""
    rest, size, error = 1 - product(wanted, ray), 0.0, 0.0
    if not rest > ROUNDING:
        return False
    for i in range(len(ray)):
        ray[i] /= rest
        size += ray[i]
    for i in range(len(ray)):
        wrong = abs(min(ray[i], product(cosines[i], ray) - wanted[i]))
        if wrong > error or math.isnan(wrong):
            error = wrong
    return error <= 1e-10 * (1 + size)


@compiled()
def _upper_bound(ball: _Ball) -> float:
    """Return a ν that is too large or just right; 0 where the gradients' hull contains 0.

    Every w of the simplex bounds ν by ``g_wᵀ g_0 + c |g_0| |g_w|``: tried are the tasks and the shortest g_w.
    """
    count, least = len(ball.bound), np.inf
    for i in range(count):
        least = min(least, ball.bound[i])
    if least == 0:
        return 0.0
    lengths, gram = np.empty(count), np.empty((count, count))  # the longest is 1
    for i in range(count):
        lengths[i] = least / ball.bound[i]
    for i in range(count):
        for j in range(count):
            gram[i, j] = ball.cosines[i, j] * (lengths[i] * lengths[j])
    weights, residual = solve_min_norm(gram, _MIN_NORM)
    if not residual <= _MIN_NORM:
        return np.nan
    for i in range(count):
        weights[i] *= lengths[i]
    shortest = math.sqrt(max(_square(ball.cosines, weights), 0.0))
    if shortest <= _UNRESOLVED * weights.sum():
        return 0.0
    bound = (product(ball.mean, weights) + ball.radius * shortest) / least
    for i in range(count):
        bound = min(bound, (ball.mean[i] + ball.radius) / ball.bound[i])
    return bound
