"""What every solver asks of a Gram matrix before it starts.

`least_square` and `cosines_and_lengths` are compiled: kernels call them as loops, Python as functions. A
kernel returns its answer and a residual, NaN where the matrix cannot be solved, and its caller raises what
`failure` makes of that::

    @compiled()
    def _solve(gram):
        shortest = least_square(gram)
        if not shortest >= 0:
            return np.zeros(len(gram)), np.nan
        cosines, lengths = cosines_and_lengths(gram, shortest)
        ...
        return weights, residual

    weights, residual = _solve(gram)
    if not residual <= tol:
        raise failure("method", gram, residual, tol)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, cast

import numpy as np
from numpy.typing import NDArray

from mtlbench.compiled import compiled
from mtlbench.solvers.errors import SolverError

Array = NDArray[np.float64]
Arguments = ParamSpec("Arguments")
Solver = Callable[Concatenate[Array, Arguments], Array]

ROUNDING = 2.0**-22
"""By how much the product of gradients in float32 may be off, relative to their lengths."""


@compiled()
def least_square(gram: Array) -> float:
    """Return the smallest element of the diagonal of ``gram`` ``[T, T]``, NaN where not all are finite."""
    smallest = np.inf
    for i in range(len(gram)):
        for j in range(len(gram)):
            if not math.isfinite(gram[i, j]):
                return np.nan
        smallest = min(smallest, gram[i, i])
    return smallest


@compiled()
def cosines_and_lengths(gram: Array, shortest: float) -> tuple[Array, Array]:
    """Return the cosines ``[T, T]`` between the gradients and their lengths ``[T]``.

    shortest: the smallest squared length, 0 or more. A gradient of length 0 has no direction: it is given
    the length 1 and stands at right angles to all, so that whatever it is multiplied by changes nothing.
    """
    count = len(gram)
    cosines, lengths = np.empty((count, count)), np.empty(count)
    for i in range(count):
        lengths[i] = math.sqrt(gram[i, i]) if gram[i, i] > 0 else 1.0
    for i in range(count):
        length = lengths[i]
        for j in range(count):
            cosines[i, j] = gram[i, j] / (length * lengths[j])
        if shortest == 0:
            cosines[i, i] = 1.0
    return cosines, lengths


def shortest_square(gram: Array, method: str) -> float:
    """Return `least_square`, having checked that ``gram`` ``[T, T]`` can be solved.

    Raises `SolverError` for ``method`` where an element is not finite or the diagonal has a negative one.
    """
    shortest = least_square(gram)
    if shortest >= 0:
        return shortest
    if shortest < 0:
        raise SolverError(
            method, f"the Gram matrix has {shortest:.1e} on its diagonal, a negative squared length"
        )
    row, column = np.argwhere(~np.isfinite(gram))[0]
    raise SolverError(method, f"the Gram matrix is not finite at row {row}, column {column}")


def not_reached(method: str, residual: float, tol: float) -> SolverError:
    """Return the error of a solver whose last iterate is further than ``tol`` from a solution."""
    reason = (
        f"the relative residual is {residual:.1e}, above the tolerance of {tol:.1e}; "
        "check that the matrix is J Jᵀ in float64"
    )
    return SolverError(method, reason, residual)


def failure(method: str, gram: Array, residual: float, tol: float) -> SolverError:
    """Return the error of a solver whose kernel ended with a residual that is not within ``tol``."""
    try:
        shortest_square(gram, method)
    except SolverError as error:
        return error
    return not_reached(method, residual, tol)


def within_rounding(solve: Solver[Arguments]) -> Solver[Arguments]:
    """Return a solver that answers, where it cannot for ``gram``, for a matrix that is the same to rounding.

    Gradients in float32 that depend on each other have a matrix with eigenvalues of either sign near 0, and
    no solver ends there. Then every square is increased by T times `ROUNDING`, the most by which an
    eigenvalue of the cosines can be off. A matrix that is not solved so either raises what it raised first.
    """

    @wraps(solve)
    def solved(gram: Array, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Array:
        try:
            return solve(gram, *args, **kwargs)
        except SolverError as error:
            if not np.isfinite(gram).all():
                raise
            raised = error
        ridged = gram + np.diag(gram.diagonal() * len(gram) * ROUNDING)
        try:
            return solve(ridged, *args, **kwargs)
        except SolverError:
            raise raised from None

    return cast("Solver[Arguments]", solved)
