"""The shortest vector in the convex hull of the task gradients, from their Gram matrix."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv

from mtlbench.solvers.errors import SolverError

Array = NDArray[np.float64]

_ROUNDING = 1e-13
"""What counts as zero in the unknowns of `_Cone`, which are of order one."""


def min_norm_point(gram: Array, *, tol: float = 1e-9) -> Array:
    """Return the weights ``w`` ``[T]`` that minimise ``wᵀ G w`` subject to ``w >= 0, sum(w) = 1``, exactly.

    gram: ``G = J Jᵀ`` ``[T, T]``, float64, of any scale. tol: the largest optimality residual that is
    accepted, relative to the lengths of the gradients (see `_Cone.residual`); about 1e-15 is reached.

    The vector ``Jᵀ w`` is unique; ``w`` is where the gradients are affinely independent. Elsewhere one of
    the minimisers is returned. Gradients that are zero share all the weight equally, since the shortest
    vector then is zero.

    Two tasks have a closed form. More are a least-squares problem with non-negative unknowns (see `_Cone`),
    solved by an active-set method: block principal pivoting (Portugal, Júdice & Vicente, Mathematics of
    Computation 63, 1994) takes a handful of small Cholesky factorisations; where dependent gradients keep it
    from ending, the monotone method of Lawson & Hanson (1974, chapter 23) takes over, which here is Wolfe's
    min-norm-point algorithm (Mathematical Programming 11, 1976) written for the Gram matrix.

    Raises `SolverError` where ``G`` is not finite or not positive semidefinite, or ``tol`` is not reached.
    """
    shortest = _shortest(gram, "min_norm_point")
    if len(gram) <= 2:
        return _two_points(gram)
    if shortest == 0:
        return _share(gram)
    cone = _Cone.of(gram, shortest)
    residual = math.inf
    for method in (_block_pivoting, _lawson_hanson):
        ray = method(cone)
        if ray is not None:
            residual = cone.residual(ray)
            if residual <= tol:
                return cone.weights(ray)
    raise _not_reached("min_norm_point", residual, tol)


def min_norm_point_cvxpy(gram: Array, *, tol: float = 1e-6) -> Array:
    """Return what `min_norm_point` returns, found by cvxpy (Clarabel) as a generic quadratic program.

    An independent check rather than a tool: it takes about a hundred times as long. Raises the same errors.
    """
    shortest = _shortest(gram, "min_norm_point_cvxpy")
    if shortest == 0:
        return _share(gram)
    cone = _Cone.of(gram, shortest)
    values, vectors = np.linalg.eigh(cone.cosines)
    program = _quadratic_program(len(gram))
    program.root.value = np.sqrt(values.clip(min=0))[:, None] * vectors.T
    program.bound.value = cone.bound
    program.problem.solve(
        solver="CLARABEL", warm_start=False, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10
    )
    if program.ray.value is None:
        reason = f"Clarabel ended without a solution: {program.problem.status}"
        raise SolverError("min_norm_point_cvxpy", reason)
    ray = program.ray.value.clip(min=0)
    residual = cone.residual(ray)
    if not residual <= tol:
        raise _not_reached("min_norm_point_cvxpy", residual, tol)
    return cone.weights(ray)


class _Cone(NamedTuple):
    """The problem in a form whose numbers are of order one whatever the lengths of the gradients.

    cosines: ``C`` ``[T, T]``, between the gradients. bound: ``b`` ``[T]``, the shortest gradient's length
    over each one's, in 0..1. matrix: ``A = C + b bᵀ`` ``[T, T]``.

    With ``u = w / b`` the problem reads ``min uᵀ C u, u >= 0, bᵀ u = 1``. Adding ``b bᵀ`` to ``C`` leaves
    the minimiser where it is and makes ``A = C + b bᵀ`` positive definite on every affinely independent
    set of gradients, even where the shortest vector is zero. So the constraint ``bᵀ u = 1`` can be
    dropped: ``u`` is, up to a factor (hence "ray"), the ``v >= 0`` that minimises ``vᵀ A v / 2 - bᵀ v``.
    """

    cosines: Array
    bound: Array
    matrix: Array

    @classmethod
    def of(cls, gram: Array, shortest: float) -> _Cone:
        lengths = np.sqrt(gram.diagonal())
        bound = math.sqrt(shortest) / lengths
        cosines = gram / (lengths[:, None] * lengths)
        return cls(cosines, bound, cosines + bound[:, None] * bound)

    def weights(self, ray: Array) -> Array:
        weights = ray * self.bound
        weights /= np.add.reduce(weights)
        return weights

    def residual(self, ray: Array) -> float:
        """Return how far from optimal a ray is, 0 at the optimum.

        There ``(G w)_i >= wᵀ G w`` for all ``i``. The largest violation, which no single gradient can exceed
        in shortening the vector, is taken relative to ``(|g_i| + m) m`` with ``m = sum_j w_j |g_j|``: that is
        what rounding errors are proportional to.
        """
        u = ray / self.bound.dot(ray)
        length = np.add.reduce(u)
        products = self.cosines.dot(u)
        square = u.dot(products)
        if square < -1e-9 * length * length:
            return math.inf
        violation = (square * self.bound - products) / (1 + length * self.bound)
        return float(np.maximum.reduce(violation) / length)


def _block_pivoting(cone: _Cone) -> Array | None:
    """Exchange all wrong indices at once while that helps; give up (None) where it does not."""
    count = len(cone.bound)
    passive = np.ones(count, dtype=bool)
    fewest, patience = count + 1, 3
    while patience:
        chosen = passive.nonzero()[0]
        solution = _solve(cone, chosen)
        if solution is None:
            return None
        if len(chosen) == count:
            ray, wrong = solution, solution < -_ROUNDING
        else:
            ray = np.zeros(count)
            ray[chosen] = solution
            wrong = np.where(passive, ray, cone.matrix.dot(ray) - cone.bound) < -_ROUNDING
        amount = int(np.count_nonzero(wrong))
        if amount == 0:
            return np.maximum(ray, 0)
        if amount < fewest:
            fewest, patience = amount, 3
        else:
            patience -= 1
        passive ^= wrong
    return None


def _lawson_hanson(cone: _Cone) -> Array:
    """Let in the most violated index, let out what turns negative; each round shortens the vector."""
    count = len(cone.bound)
    ray = np.zeros(count)
    dependent = np.zeros(count, dtype=bool)
    for _ in range(30 * count):
        slack = cone.bound - cone.matrix.dot(ray)
        slack[(ray > 0) | dependent] = -np.inf
        new = slack.argmax()
        if slack[new] <= _ROUNDING:
            break
        step = _nonnegative_step(cone, ray, new)
        if step is None:
            dependent[new] = True
        else:
            ray = step
            dependent[:] = False
    return ray


def _nonnegative_step(cone: _Cone, ray: Array, new: np.intp) -> Array | None:
    """Return the minimiser on the face that is reached from ``ray`` when ``new`` may be positive as well.

    None where ``new`` does not become positive: then its gradient depends on the others within rounding.
    """
    passive = ray > 0
    passive[new] = True
    while passive[new]:
        chosen = passive.nonzero()[0]
        solution = _solve(cone, chosen)
        if solution is None:
            return None
        target = np.zeros_like(ray)
        target[chosen] = solution
        outside = (passive & (target <= 0)).nonzero()[0]
        if len(outside) == 0:
            return target
        steps = ray[outside] / np.maximum(ray[outside] - target[outside], np.finfo(float).tiny)
        ray = np.maximum(ray + steps.min() * (target - ray), 0)
        ray[outside[steps.argmin()]] = 0
        passive[outside[steps.argmin()]] = False
    return None


def _solve(cone: _Cone, chosen: NDArray[np.intp]) -> Array | None:
    """Solve on the chosen indices by Cholesky; None where the chosen gradients are affinely dependent."""
    matrix, bound = cone.matrix, cone.bound
    if len(chosen) < len(bound):
        matrix, bound = matrix.take(chosen, 0).take(chosen, 1), bound.take(chosen)
    _, solution, info = dposv(matrix, bound)
    return solution if info == 0 else None


def _two_points(gram: Array) -> Array:
    """Return the closed form for one task or two: the foot of the perpendicular, clipped to the segment."""
    if len(gram) == 1:
        return np.ones(1)
    (first, product), (_, second) = gram.tolist()
    towards_first, towards_second = max(second - product, 0.0), max(first - product, 0.0)
    total = towards_first + towards_second
    return np.array([towards_first / total, towards_second / total] if total > 0 else [0.5, 0.5])


def _share(gram: Array) -> Array:
    """Return equal weights on the gradients that are zero."""
    zero: Array = (gram.diagonal() == 0).astype(np.float64)
    zero /= zero.sum()
    return zero


def _shortest(gram: Array, method: str) -> float:
    """Return the smallest squared length, having checked that the matrix is one that can be solved."""
    if not math.isfinite(np.add.reduce(gram, axis=None)):
        bad = np.argwhere(~np.isfinite(gram)).tolist()
        where = f"at row {bad[0][0]}, column {bad[0][1]}" if bad else "in its sum"
        raise SolverError(method, f"the Gram matrix is not finite {where}")
    shortest = float(np.minimum.reduce(gram.diagonal()))
    if shortest < 0:
        raise SolverError(
            method, f"the Gram matrix has {shortest:.1e} on its diagonal, a negative squared length"
        )
    return shortest


def _not_reached(method: str, residual: float, tol: float) -> SolverError:
    reason = (
        f"the relative residual is {residual:.1e}, above the tolerance of {tol:.1e}; "
        "check that the matrix is J Jᵀ in float64"
    )
    return SolverError(method, reason, residual)


class _Program(NamedTuple):
    problem: Any
    ray: Any
    root: Any
    bound: Any


@lru_cache(maxsize=64)
def _quadratic_program(count: int) -> _Program:
    """Return the problem of `_Cone` for ``count`` tasks: compiled once, given its numbers at every call."""
    import cvxpy
    from cvxpy.atoms.sum_squares import sum_squares

    ray = cvxpy.Variable(count, nonneg=True)
    root = cvxpy.Parameter((count, count))
    bound = cvxpy.Parameter(count, nonneg=True)
    problem = cvxpy.Problem(cvxpy.Minimize(sum_squares(root @ ray)), [bound @ ray == 1])
    return _Program(problem, ray, root, bound)
