"""Functions of a small symmetric matrix, times a vector, by its eigenvalues: kernels, for kernels.

Householder reflections make ``A`` tridiagonal, and steps of the QR algorithm with Wilkinson's shift make that
diagonal (Golub & Van Loan, Matrix Computations, chapter 8.3): ``A = V Λ Vᵀ`` with V a product of reflections
and rotations. V itself is never formed: it costs less to apply what it is made of to one vector and, with the
result multiplied by a function of the eigenvalues, to go back the same way. Errors are those of LAPACK, of
rounding relative to the largest eigenvalue.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mtlbench.compiled import compiled

Array = NDArray[np.float64]
Path = tuple[Array, Array, NDArray[np.int64]]
"""What V is made of: the reflections' vectors, in rows ``[T, T]``; the rotations' sines and cosines
``[R, 2]``; the first of the two coordinates that each turns ``[R]``."""

_ROUNDING = 2.0**-53

_NOTHING = 1e-100
"""Beside elements of order one this is 0, and its square can be taken."""

_SWEEPS = 30
"""How many sweeps there may be, times T; two are usual."""


@compiled()
def decompose(matrix: Array, vector: Array) -> tuple[Array, Array, Path, bool]:
    """Return the eigenvalues ``[T]``, in no order; ``Vᵀ vector`` ``[T]``; the way back; and whether it ended.

    matrix: symmetric ``[T, T]`` with elements of order one.
    """
    count = len(matrix)
    diagonal, beside, parts = np.empty(count), np.zeros(count), vector.copy()
    reflections = _tridiagonal(matrix.copy(), diagonal, beside, parts)
    most = _SWEEPS * count * count
    turns, places, turned = np.empty((most, 2)), np.empty(most, dtype=np.int64), 0
    last = count - 1
    while last > 0:
        first = last
        while first > 0 and not _negligible(beside[first - 1], diagonal[first - 1], diagonal[first]):
            first -= 1
        if first == last:
            last -= 1
            continue
        if turned + last - first > most:
            break
        # The shift is the eigenvalue of the last two rows that is nearer to the last of them.
        half, side = (diagonal[last - 1] - diagonal[last]) / 2, beside[last - 1]
        shift = diagonal[last] - side * side / (half + math.copysign(math.hypot(half, side), half))
        ahead, bulge = diagonal[first] - shift, beside[first]
        for k in range(first, last):
            length = math.sqrt(ahead * ahead + bulge * bulge)
            cosine, sine = (ahead / length, bulge / length) if length > 0 else (1.0, 0.0)
            if k > first:
                beside[k - 1] = length
            change = (diagonal[k + 1] - diagonal[k]) * sine + 2 * cosine * beside[k]
            diagonal[k] += sine * change
            diagonal[k + 1] -= sine * change
            beside[k] = cosine * change - beside[k]
            if k < last - 1:
                ahead, bulge = beside[k], sine * beside[k + 1]
                beside[k + 1] *= cosine
            parts[k], parts[k + 1] = (
                cosine * parts[k] + sine * parts[k + 1],
                cosine * parts[k + 1] - sine * parts[k],
            )
            turns[turned, 0], turns[turned, 1], places[turned] = sine, cosine, k
            turned += 1
    return diagonal, parts, (reflections, turns[:turned], places[:turned]), last <= 0


@compiled()
def _negligible(beside: float, one: float, other: float) -> bool:
    """Return whether what stands beside two elements of the diagonal is a rounding error of theirs."""
    return abs(beside) <= _ROUNDING * (abs(one) + abs(other)) or abs(beside) < _NOTHING


@compiled()
def recompose(path: Path, parts: Array) -> Array:
    """Return ``V parts`` ``[T]``, for the way that `decompose` gave."""
    reflections, turns, places = path
    vector = parts.copy()
    for step in range(len(places) - 1, -1, -1):
        sine, cosine, k = turns[step, 0], turns[step, 1], places[step]
        vector[k], vector[k + 1] = (
            cosine * vector[k] - sine * vector[k + 1],
            cosine * vector[k + 1] + sine * vector[k],
        )
    for k in range(len(parts) - 3, -1, -1):
        _reflect(reflections[k], vector, k + 1)
    return vector


@compiled(reorder=True)
def _tridiagonal(matrix: Array, diagonal: Array, beside: Array, parts: Array) -> Array:
    """Write the tridiagonal matrix ``Qᵀ A Q`` to ``diagonal`` and ``beside`` ``[T]``; turn ``parts`` by Qᵀ.

    Return v of the reflections ``1 - v vᵀ`` that make Q, in rows. They are written over ``matrix``.
    """
    count = len(matrix)
    moved = np.empty(count)
    for k in range(count - 2):
        row = matrix[k]
        square = 0.0
        for j in range(k + 2, count):
            square += row[j] * row[j]
        diagonal[k], beside[k] = row[k], row[k + 1]
        if square == 0:
            row[k + 1 :] = 0.0
            continue
        length = math.copysign(math.sqrt(row[k + 1] * row[k + 1] + square), row[k + 1])
        beside[k] = -length
        row[k + 1] += length
        scale = 1 / math.sqrt(length * row[k + 1])
        for j in range(k + 1, count):
            row[j] *= scale
        # (1 - v vᵀ) A (1 - v vᵀ) = A - v wᵀ - w vᵀ,  w = A v - (vᵀ A v / 2) v
        along = 0.0
        for i in range(k + 1, count):
            total = 0.0
            for j in range(k + 1, count):
                total += matrix[i, j] * row[j]
            moved[i] = total
            along += total * row[i]
        for i in range(k + 1, count):
            moved[i] -= along / 2 * row[i]
        for i in range(k + 1, count):
            for j in range(k + 1, count):
                matrix[i, j] -= row[i] * moved[j] + moved[i] * row[j]
        _reflect(row, parts, k + 1)
    if count > 1:
        diagonal[count - 2], beside[count - 2] = matrix[count - 2, count - 2], matrix[count - 2, count - 1]
    diagonal[count - 1] = matrix[count - 1, count - 1]
    return matrix


@compiled(reorder=True)
def _reflect(row: Array, vector: Array, first: int) -> None:
    """Take ``v vᵀ vector`` off ``vector``, where v is ``row`` from ``first`` on."""
    total = 0.0
    for j in range(first, len(row)):
        total += row[j] * vector[j]
    for j in range(first, len(row)):
        vector[j] -= total * row[j]
