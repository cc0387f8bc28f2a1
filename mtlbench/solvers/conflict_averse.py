"""The update of CAGrad: near the mean gradient, as good as can be for the task that it serves worst."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv

from mtlbench.solvers.gram import cosines_and_lengths, not_reached, shortest_square
from mtlbench.solvers.min_norm import min_norm_point
from mtlbench.solvers.nonnegative import ROUNDING, block_pivoting, lawson_hanson

Array = NDArray[np.float64]

_UNRESOLVED = 1e-6
"""A sum of gradients that is shorter than this, relative to the sum of their lengths, counts as 0: in float32
its direction is noise, and in float64 the square in the Gram matrix loses twice as many digits."""


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

    Raises `SolverError` where ``G`` is not finite or not positive semidefinite, or ``tol`` is not reached.
    """
    problem = _Ball.of(gram, radius)
    if problem is None:
        return np.zeros(len(gram))
    residual = math.inf
    for method in (_pivot, _newton):
        found = method(problem)
        if found is not None:
            unknowns, progress = found
            residual = problem.residual(unknowns, progress)
            if residual <= tol:
                return unknowns * problem.factor
    raise not_reached("conflict_averse_correction", residual, tol)


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

    @classmethod
    def of(cls, gram: Array, radius: float) -> _Ball | None:
        """Return the problem, or None where the ball is a point within rounding."""
        shortest = shortest_square(gram, "conflict_averse_correction")
        cosines, lengths = cosines_and_lengths(gram, shortest)
        parts = np.sqrt(gram.diagonal()) / len(gram)
        mean = cosines.dot(parts)
        length = math.sqrt(max(float(parts.dot(mean)), 0.0))
        if radius == 0 or length <= _UNRESOLVED * np.add.reduce(parts):
            return None
        if shortest > 0:
            bound = math.sqrt(shortest) / lengths
        else:
            present = gram.diagonal() > 0
            bound = np.where(present, lengths[present].min() / lengths, 0.0)
        return cls(cosines, mean / length, bound, radius, length / lengths)

    def residual(self, unknowns: Array, progress: float) -> float:
        """Return how far from optimal the unknowns are, relative to their sum, 0 at the optimum.

        The ball may have room left where ``progress``, ν, is 0: nothing better is feasible or unique.
        """
        products = self.cosines.dot(unknowns)
        size = np.add.reduce(unknowns)
        error = np.minimum(unknowns, products + self.mean - progress * self.bound)
        outside = float(unknowns.dot(products)) - self.radius**2
        if progress == 0:
            outside = max(outside, 0.0)
        # rounding errors of a square are relative to the square of the sum: they count 1e-5 of the others
        ball = abs(outside) / (self.radius**2 + 1e-5 * size**2)
        return float(max(np.maximum.reduce(np.abs(error)) / (1 + size), ball))

    def on(self, chosen: NDArray[np.intp]) -> tuple[Array, float] | None:
        """Return unknowns (of ``chosen``) and ν where only those may be positive; None: they depend.

        Where the support's plane stays out of the ball, ν is the one of the plane that comes nearest.
        """
        bound, mean = self.bound.take(chosen), self.mean.take(chosen)
        _, solutions, info = dposv(
            self.cosines.take(chosen, 0).take(chosen, 1), np.column_stack((bound, mean))
        )
        if info != 0:
            return None
        along, across = solutions.T
        square, product = bound.dot(along), bound.dot(across)
        room = product * product - square * (mean.dot(across) - self.radius**2)
        progress = (product + math.sqrt(max(room, 0.0))) / square
        return progress * along - across, progress


def _pivot(problem: _Ball) -> tuple[Array, float] | None:
    """Exchange all wrong indices of a support at once while that helps; give up (None) where it does not."""
    count = len(problem.mean)
    if not problem.bound.all():
        return None
    passive = np.ones(count, dtype=bool)
    fewest, patience = count + 1, 3
    while patience:
        chosen = passive.nonzero()[0]
        found = problem.on(chosen) if len(chosen) else None
        if found is None:
            return None
        unknowns, progress = np.zeros(count), found[1]
        unknowns[chosen] = found[0]
        slack = problem.cosines.dot(unknowns) + problem.mean - progress * problem.bound
        wrong = np.where(passive, unknowns, slack) < -ROUNDING
        amount = int(np.count_nonzero(wrong))
        if amount == 0:
            unknowns = np.maximum(unknowns, 0)
            stationary = problem.radius <= _UNRESOLVED * np.add.reduce(unknowns)
            return None if stationary else (unknowns, progress)
        if amount < fewest:
            fewest, patience = amount, 3
        else:
            patience -= 1
        passive ^= wrong
    return None


def _newton(problem: _Ball) -> tuple[Array, float] | None:
    """Follow the convex function ``|Jᵀ z(ν)|`` from the right to where it is the radius."""
    progress = 0.0
    unknowns = _nearest(problem, progress)
    if unknowns is None:
        return None
    if problem.cosines.dot(unknowns).dot(unknowns) <= problem.radius**2:
        if not problem.bound.all():
            return unknowns, progress
        start = _upper_bound(problem)
        if start is None:
            return unknowns, progress
        progress = start
    for _ in range(100):
        unknowns = _nearest(problem, progress)
        if unknowns is None:
            return None
        chosen = unknowns.nonzero()[0]
        exact = problem.on(chosen) if len(chosen) else None
        if exact is not None:
            candidate = np.zeros_like(unknowns)
            candidate[chosen] = np.maximum(exact[0], 0)
            if problem.residual(candidate, exact[1]) <= 1e-12:
                return candidate, exact[1]
        length = math.sqrt(max(float(problem.cosines.dot(unknowns).dot(unknowns)), 0.0))
        if length <= problem.radius * (1 + 1e-12):
            break
        progress -= (length - problem.radius) * length / float(problem.bound.dot(unknowns))
    return unknowns, progress


def _nearest(problem: _Ball, progress: float) -> Array | None:
    """Return the unknowns of the vector nearest to the mean gradient whose progress is ν or more.

    A least-distance problem: with ``h = ν ρ - β`` the unknowns are ``v / (1 - hᵀ v)`` for the minimiser
    ``v >= 0`` of ``vᵀ (C + h hᵀ) v / 2 - hᵀ v`` (Lawson & Hanson 1974, chapter 23.4), which is bounded also
    where gradients depend on each other. None where no such vector exists within rounding.
    """
    wanted = progress * problem.bound - problem.mean
    if not (wanted > ROUNDING).any():
        return np.zeros_like(wanted)
    matrix = problem.cosines + wanted[:, None] * wanted
    for solve in (block_pivoting, lawson_hanson):
        ray = solve(matrix, wanted)
        if ray is not None and (rest := 1 - float(wanted.dot(ray))) > ROUNDING:
            unknowns = ray / rest
            error = np.minimum(unknowns, problem.cosines.dot(unknowns) - wanted)
            if np.abs(error).max() <= 1e-10 * (1 + np.add.reduce(unknowns)):
                return unknowns
    return None


def _upper_bound(problem: _Ball) -> float | None:
    """Return a ν that is too large or just right; None where the gradients' hull contains 0.

    Every w of the simplex bounds ν by ``g_wᵀ g_0 + c |g_0| |g_w|``: tried are the tasks and the shortest g_w.
    """
    lengths = problem.bound.min() / problem.bound  # longest is 1
    weights = min_norm_point(problem.cosines * np.multiply.outer(lengths, lengths)) * lengths
    shortest = math.sqrt(max(float(problem.cosines.dot(weights).dot(weights)), 0.0))
    if shortest <= _UNRESOLVED * np.add.reduce(weights):
        return None
    together = (problem.mean.dot(weights) + problem.radius * shortest) / problem.bound.min()
    return float(min(together, ((problem.mean + problem.radius) / problem.bound).min()))
