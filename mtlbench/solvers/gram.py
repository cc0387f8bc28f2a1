"""What every solver asks of a Gram matrix before it starts."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mtlbench.solvers.errors import SolverError

Array = NDArray[np.float64]


def shortest_square(gram: Array, method: str) -> float:
    """Return the smallest squared length, having checked that ``gram`` ``[T, T]`` can be solved.

    Raises `SolverError` for ``method`` where an element is not finite or the diagonal has a negative one.
    """
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


def cosines_and_lengths(gram: Array, shortest: float) -> tuple[Array, Array]:
    """Return the cosines ``[T, T]`` between the gradients and their lengths ``[T]``.

    A gradient of length 0 has no direction: it is given the length 1 and stands at right angles to all, so
    that whatever it is multiplied by changes nothing.
    """
    lengths = np.sqrt(gram.diagonal())
    if shortest > 0:
        return gram / (lengths[:, None] * lengths), lengths
    lengths[lengths == 0] = 1.0
    cosines = gram / (lengths[:, None] * lengths)
    np.fill_diagonal(cosines, 1.0)
    return cosines, lengths


def not_reached(method: str, residual: float, tol: float) -> SolverError:
    """Return the error of a solver whose last iterate is further than ``tol`` from a solution."""
    reason = (
        f"the relative residual is {residual:.1e}, above the tolerance of {tol:.1e}; "
        "check that the matrix is J Jᵀ in float64"
    )
    return SolverError(method, reason, residual)
