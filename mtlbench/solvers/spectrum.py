"""Methods that read the spectrum of the task gradients: Aligned-MTL and ConFIG."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mtlbench.solvers.gram import cosines_and_lengths, shortest_square
from mtlbench.solvers.nonnegative import ROUNDING

Array = NDArray[np.float64]

ScaleMode = Literal["min", "median", "rmse"]


def aligned_weights(gram: Array, scale_mode: ScaleMode = "min", *, precision: float) -> Array:
    """Return the weights ``s V Λ^(-1/2) Vᵀ 1`` ``[T]`` of ``G = V Λ Vᵀ``.

    gram: ``G = J Jᵀ`` ``[T, T]``, float64, of any scale. scale_mode: what s is, over the eigenvalues that
    count: the root of the smallest (``"min"``), of the median (the lower of two) or of the mean
    (``"rmse"``). precision: the relative error of G; see `_spectrum`. Ones where G is zero.

    Raises `SolverError` where G is not finite or has a negative diagonal.
    """
    shortest_square(gram, "aligned_weights")
    if not gram.diagonal().any():
        return np.ones(len(gram))
    values, vectors = _spectrum(gram, precision)
    match scale_mode:
        case "min":
            square = values[0]
        case "median":
            square = values[(len(values) - 1) // 2]
        case "rmse":
            square = np.add.reduce(values) / len(values)
    sums = np.add.reduce(vectors, axis=0)
    # of gradients that cancel, such as two opposite ones, nothing is left: not even rounding errors
    sums[np.abs(sums) <= len(gram) * ROUNDING] = 0
    weights: Array = vectors.dot(np.sqrt(square / values) * sums)
    return weights


def config_weights(gram: Array, *, precision: float) -> Array:
    """Return the weights ``[T]`` of the vector that has one cosine with all task gradients.

    gram: ``G = J Jᵀ`` ``[T, T]``, float64, of any scale. precision: the relative error of G; see `_spectrum`.

    With C the cosines between the gradients, ``C z = 1`` (by the pseudo-inverse) makes
    ``sum_t z_t g_t / |g_t|`` that vector up to its length, which is then set to the sum of the gradients'
    projections on it. Zeros where no such vector exists: the pseudo-inverse gives 0 for gradients that
    cancel. A gradient of length 0 has weight 0.

    Raises `SolverError` where G is not finite or has a negative diagonal.
    """
    shortest = shortest_square(gram, "config_weights")
    cosines, lengths = cosines_and_lengths(gram, shortest)
    present = (gram.diagonal() > 0).astype(np.float64)
    values, vectors = _spectrum(cosines, precision)
    parts = present.dot(vectors)
    if np.sqrt(parts.dot(parts)) <= len(gram) * precision:
        return np.zeros(len(gram))
    direction = present * vectors.dot(parts / values)
    products = cosines.dot(direction)
    length = (lengths * present).dot(products) / direction.dot(products)
    weights: Array = direction / lengths * length
    return weights


def _spectrum(matrix: Array, precision: float) -> tuple[Array, Array]:
    """Return the eigenvalues ``[R]``, ascending, and eigenvectors ``[T, R]`` that are not rounding errors.

    Those count that exceed the largest times T times ``precision``, which is what errors of that relative
    size in the matrix amount to.
    """
    values, vectors = np.linalg.eigh(matrix)
    first = int(np.searchsorted(values, values[-1] * len(matrix) * precision, side="right"))
    return values[first:], vectors[:, first:]
