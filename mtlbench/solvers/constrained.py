"""The shortest vector in the convex hull of gradients, for directions that must lower one more function."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mtlbench.solvers.errors import SolverError
from mtlbench.solvers.gram import cosines_and_lengths, not_reached, shortest_square

Array = NDArray[np.float64]

_RIDGE = 1e-13
"""What keeps dependent gradients from a singular system; it is that share of the diagonal."""


def constrained_min_norm(products: Array, rho: float, *, tol: float = 1e-9) -> Array:
    """Return the weights ``b`` ``[T]`` of the direction that lowers T functions and keeps a constraint.

    products: the Gram matrix ``[T + 1, T + 1]`` of the gradients ``f_t`` and, last, of the constraint's
    gradient q. rho: >= 0. The direction ``d`` minimises ``max_t <f_t, d> + |d|² / 2`` subject to
    ``<q, d> <= -rho |q|²``; by duality ``d = -(sum_t b_t f_t + nu q)`` with b on the simplex and ``nu >= 0``
    the minimisers of ``|sum_t b_t f_t + nu q|² / 2 - nu rho |q|²``. (Ye et al., arXiv:2401.09257, after the
    dynamic barrier of Gong, Liu & Liu, arXiv:2106.05526.) tol: the largest optimality residual that is
    accepted, relative to the lengths of the gradients.

    An active set grows by the most violated index and loses what would turn negative. Raises `SolverError`
    where the matrix is not finite or ``tol`` is not reached.
    """
    shortest = shortest_square(products, "constrained_min_norm")
    count = len(products) - 1
    if products[count, count] == 0:
        products, shortest = products[:count, :count], float(products.diagonal()[:count].min())
    matrix, lengths = cosines_and_lengths(products, shortest)
    # With x = (b, nu) times the lengths over the shortest one, the diagonal is 1 and sum(b) = 1 reads
    # total @ x = 1. A gradient of length 0 counts as one of the shortest length with a square of 0.
    zero = products.diagonal() == 0
    unit = lengths[:count][~zero[:count]].min(initial=np.inf)
    unit = float(unit) if np.isfinite(unit) else 1.0
    matrix[zero, zero] = 0.0
    lengths[zero] = unit
    total = unit / lengths
    total[count:] = 0.0
    linear = np.zeros(len(matrix))
    linear[count:] = rho * lengths[count:] / unit
    if len(matrix) > count and linear[count] >= 1 / total[:count].min():
        # nu is positive whatever b is, so that it can be eliminated, which keeps the digits beside a long q.
        along, size = matrix[count, :count], max(linear[count], 1.0)
        matrix, total = (matrix[:count, :count] - np.outer(along, along)) / size, total[:count]
        linear = -linear[count] / size * along
    solution = _active_set(matrix, linear, total)
    residual = _residual(matrix, linear, total, solution)
    if not residual <= tol:
        raise not_reached("constrained_min_norm", residual, tol)
    weights: Array = solution[:count] * total[:count]
    weights /= weights.sum()
    return weights


def _active_set(matrix: Array, linear: Array, total: Array) -> Array:
    """Minimise ``xᵀ A x / 2 - cᵀ x`` subject to ``x >= 0, total @ x = 1``."""
    size = len(linear)
    ridged = matrix + _RIDGE * np.eye(size)
    cost = np.where(total > 0, 0.5 * ridged.diagonal() / np.where(total > 0, total, 1.0) ** 2, np.inf)
    start = int(cost.argmin())
    point = np.zeros(size)
    point[start] = 1 / total[start]
    chosen = [start]
    for _ in range(50 * size):
        target, multiplier = _on_support(ridged, linear, total, chosen)
        outside = [i for i in chosen if target[i] < 0]
        if outside:
            steps = [point[i] / (point[i] - target[i]) for i in outside]
            shortest = int(np.argmin(steps))
            point = np.maximum(point + steps[shortest] * (target - point), 0)
            point[outside[shortest]] = 0
            chosen.remove(outside[shortest])
            continue
        point = target
        slack = ridged @ point - linear - multiplier * total
        slack[chosen] = 0
        worst = int(slack.argmin())
        if slack[worst] >= -1e-13 * (1 + abs(multiplier) + np.abs(point).sum()):
            break
        chosen.append(worst)
    return point


def _on_support(matrix: Array, linear: Array, total: Array, chosen: list[int]) -> tuple[Array, float]:
    """Return the minimiser on ``chosen``, which may have negative elements, and the sum's multiplier."""
    count = len(chosen)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = matrix[np.ix_(chosen, chosen)]
    system[:count, count] = -total[chosen]
    system[count, :count] = total[chosen]
    try:
        found = np.linalg.solve(system, [*linear[chosen], 1.0])
    except np.linalg.LinAlgError:
        raise SolverError("constrained_min_norm", "the gradients depend on each other") from None
    point = np.zeros(len(linear))
    point[chosen] = found[:count]
    return point, float(found[count])


def _residual(matrix: Array, linear: Array, total: Array, point: Array) -> float:
    """Return how far from optimal a point of the simplex is, 0 at the optimum, relative to its size."""
    slope = matrix @ point - linear
    multiplier = float(point @ slope)
    size = point.sum() + np.abs(linear).sum()
    violation = np.maximum(multiplier * total - slope, 0) / (size * (1 + total * point.sum()))
    return float(violation.max())
