"""The shortest vector in the convex hull of the task gradients, from their Gram matrix."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtlbench.compiled import compiled
from mtlbench.solvers.errors import SolverError
from mtlbench.solvers.gram import (
    cosines_and_lengths,
    failure,
    least_square,
    not_reached,
    shortest_square,
    within_rounding,
)
from mtlbench.solvers.nonnegative import block_pivoting, lawson_hanson, product

Array = NDArray[np.float64]


@within_rounding
def min_norm_point(gram: Array, *, tol: float = 1e-9) -> Array:
    """Return the weights ``w`` ``[T]`` that minimise ``wᵀ G w`` subject to ``w >= 0, sum(w) = 1``, exactly.

    gram: ``G = J Jᵀ`` ``[T, T]``, float64, of any scale. tol: the largest optimality residual that is
    accepted, relative to the lengths of the gradients (see `_residual`); about 1e-15 is reached.

    The vector ``Jᵀ w`` is unique; ``w`` is where the gradients are affinely independent. Elsewhere one of
    the minimisers is returned. Gradients that are zero share all the weight equally, since the shortest
    vector then is zero.

    Two tasks have a closed form. More are a least-squares problem with non-negative unknowns (see `_cone`),
    solved by block principal pivoting; where dependent gradients keep it from ending, the method of Lawson &
    Hanson takes over, which here is Wolfe's min-norm-point algorithm (Mathematical Programming 11, 1976)
    written for the Gram matrix.

    Raises `SolverError` where ``G`` is not finite or not positive semidefinite, or ``tol`` is not reached; a
    matrix that lacks that by rounding alone is mended first (`within_rounding`).
    """
    weights, residual = solve_min_norm(np.ascontiguousarray(gram), tol)
    if not residual <= tol:
        raise failure("min_norm_point", gram, residual, tol)
    return weights


def min_norm_point_cvxpy(gram: Array, *, tol: float = 1e-6) -> Array:
    """Return what `min_norm_point` returns, found by cvxpy (Clarabel) as a generic quadratic program.

    An independent check rather than a tool: it takes about a hundred times as long. Raises the same errors.
    """
    shortest = shortest_square(gram, "min_norm_point_cvxpy")
    if shortest == 0:
        return _share(gram)
    cosines, bound, _ = _cone(gram, shortest)
    values, vectors = np.linalg.eigh(cosines)
    program = _quadratic_program(len(gram))
    program.root.value = np.sqrt(values.clip(min=0))[:, None] * vectors.T
    program.bound.value = bound
    program.problem.solve(
        solver="CLARABEL", warm_start=False, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10
    )
    if program.ray.value is None:
        reason = f"Clarabel ended without a solution: {program.problem.status}"
        raise SolverError("min_norm_point_cvxpy", reason)
    ray = program.ray.value.clip(min=0)
    residual = _residual(cosines, bound, ray)
    if not residual <= tol:
        raise not_reached("min_norm_point_cvxpy", residual, tol)
    return _weights(bound, ray)


FRANK_WOLFE_STEPS = 10_000
"""Iterations after which `min_norm_point_frank_wolfe` ends."""

FRANK_WOLFE_SMALLEST = 1e-5
"""A step of `min_norm_point_frank_wolfe` that is shorter than this, as a share of the way, ends it."""


def min_norm_point_frank_wolfe(gram: Array, *, tol: float = 0.05) -> Array:
    """Return weights near those of `min_norm_point`, by the steps of Frank & Wolfe with exact line search.

    gram: as there. Algorithm 2 of Sener & Koltun (arXiv:1810.04650): from even weights, towards the gradient
    that has the least product with their sum, as far as makes it shortest, until a step is at most
    `FRANK_WOLFE_SMALLEST` of the way, or `FRANK_WOLFE_STEPS` were made. Such steps get shorter before the
    optimum is near, so that ending is no proof: what counts is the excess of the squared length over a lower
    bound (the Frank-Wolfe gap), relative to the square of the weighted mean length of the gradients. Raises
    `SolverError` where it is above ``tol``, and where ``gram`` cannot be solved.
    """
    shortest_square(gram, "min_norm_point_frank_wolfe")
    weights = np.full(len(gram), 1 / len(gram))
    products = gram.dot(weights)
    for _ in range(FRANK_WOLFE_STEPS):
        nearest = int(products.argmin())
        square, product = weights.dot(products), products[nearest]
        distance = square - 2 * product + gram[nearest, nearest]
        if square <= product or distance <= 0:
            break
        step = min((square - product) / distance, 1.0)
        weights *= 1 - step
        weights[nearest] += step
        products += step * (gram[nearest] - products)
        if step <= FRANK_WOLFE_SMALLEST:
            break
    products = gram.dot(weights)
    length = weights.dot(np.sqrt(gram.diagonal()))
    gap = weights.dot(products) - products.min()
    residual = float(gap / length**2) if length > 0 else 0.0
    if not residual <= tol:
        raise SolverError(
            "min_norm_point_frank_wolfe",
            f"the squared length may be {residual:.1e} above the optimum, relative to the gradients' lengths,"
            f" and {tol:.1e} is accepted; use solver=exact",
            residual,
        )
    return weights


@compiled()
def solve_min_norm(gram: Array, tol: float) -> tuple[Array, float]:
    """Return the weights and their residual, NaN where the matrix cannot be solved."""
    count, shortest = len(gram), least_square(gram)
    if not shortest >= 0:
        return np.zeros(count), np.nan
    if count <= 2:
        return _two_points(gram), 0.0
    if shortest == 0:
        return _share(gram), 0.0
    cosines, bound, matrix = _cone(gram, shortest)
    ray, ended = block_pivoting(matrix, bound)
    residual = _residual(cosines, bound, ray) if ended else np.inf
    if not residual <= tol:
        ray = lawson_hanson(matrix, bound)
        residual = _residual(cosines, bound, ray)
    return _weights(bound, ray), residual


@compiled()
def _cone(gram: Array, shortest: float) -> tuple[Array, Array, Array]:
    """Return the problem in a form whose numbers are of order one whatever the lengths of the gradients.

    These are ``C`` ``[T, T]``, the cosines between the gradients; ``b`` ``[T]``, the shortest gradient's
    length over each one's, in 0..1; and ``A = C + b bᵀ`` ``[T, T]``.

    With ``u = w / b`` the problem reads ``min uᵀ C u, u >= 0, bᵀ u = 1``. Adding ``b bᵀ`` to ``C`` leaves
    the minimiser where it is and makes ``A = C + b bᵀ`` positive definite on every affinely independent
    set of gradients, even where the shortest vector is zero. So the constraint ``bᵀ u = 1`` can be
    dropped: ``u`` is, up to a factor (hence "ray"), the ``v >= 0`` that minimises ``vᵀ A v / 2 - bᵀ v``.
    """
    cosines, lengths = cosines_and_lengths(gram, shortest)
    count = len(gram)
    bound, matrix = np.empty(count), np.empty((count, count))
    for i in range(count):
        bound[i] = math.sqrt(shortest) / lengths[i]
    for i in range(count):
        for j in range(count):
            matrix[i, j] = cosines[i, j] + bound[i] * bound[j]
    return cosines, bound, matrix


@compiled()
def _weights(bound: Array, ray: Array) -> Array:
    """Return the weights of sum 1 that a ray of `_cone` stands for."""
    weights, total = np.empty(len(ray)), product(ray, bound)
    for i in range(len(ray)):
        weights[i] = ray[i] * bound[i] / total
    return weights


@compiled()
def _residual(cosines: Array, bound: Array, ray: Array) -> float:
    """Return how far from optimal a ray of `_cone` is, 0 at the optimum.

    There ``(G w)_i >= wᵀ G w`` for all ``i``. The largest violation, which no single gradient can exceed
    in shortening the vector, is taken relative to ``(|g_i| + m) m`` with ``m = sum_j w_j |g_j|``: that is
    what rounding errors are proportional to.
    """
    count, length, square, scale = len(ray), 0.0, 0.0, product(ray, bound)
    products = np.empty(count)
    for i in range(count):
        products[i] = product(cosines[i], ray) / scale
        length += ray[i] / scale
        square += ray[i] / scale * products[i]
    if square < -1e-9 * length * length:
        return np.inf
    largest = -np.inf
    for i in range(count):
        violation = (square * bound[i] - products[i]) / (1 + length * bound[i])
        if violation > largest or math.isnan(violation):
            largest = violation
    return largest / length


@compiled()
def _two_points(gram: Array) -> Array:
    """Return the closed form for one task or two: the foot of the perpendicular, clipped to the segment."""
    weights, last = np.empty(len(gram)), len(gram) - 1
    towards_first, towards_last = gram[last, last] - gram[0, last], gram[0, 0] - gram[0, last]
    total = max(towards_first, 0.0) + max(towards_last, 0.0)
    for i in range(len(gram)):
        weights[i] = 1 / len(gram)
    if total > 0:
        weights[0], weights[last] = max(towards_first, 0.0) / total, max(towards_last, 0.0) / total
    return weights


@compiled()
def _share(gram: Array) -> Array:
    """Return equal weights on the gradients that are zero."""
    zeros, weights = 0, np.zeros(len(gram))
    for i in range(len(gram)):
        zeros += gram[i, i] == 0
    for i in range(len(gram)):
        if gram[i, i] == 0:
            weights[i] = 1 / zeros
    return weights


class _Program(NamedTuple):
    problem: Any
    ray: Any
    root: Any
    bound: Any


@lru_cache(maxsize=64)
def _quadratic_program(count: int) -> _Program:
    """Return the problem of `_cone` for ``count`` tasks: compiled once, given its numbers at every call."""
    import cvxpy
    from cvxpy.atoms.sum_squares import sum_squares

    ray = cvxpy.Variable(count, nonneg=True)
    root = cvxpy.Parameter((count, count))
    bound = cvxpy.Parameter(count, nonneg=True)
    problem = cvxpy.Problem(cvxpy.Minimize(sum_squares(root @ ray)), [bound @ ray == 1])
    return _Program(problem, ray, root, bound)
