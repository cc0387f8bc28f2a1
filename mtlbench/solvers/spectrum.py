"""Methods that read the spectrum of the task gradients: Aligned-MTL and ConFIG."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mtlbench.compiled import compiled
from mtlbench.solvers.eigen import decompose, recompose
from mtlbench.solvers.gram import cosines_and_lengths, failure, least_square
from mtlbench.solvers.nonnegative import ROUNDING, product

Array = NDArray[np.float64]

ScaleMode = Literal["min", "median", "rmse"]


def aligned_weights(gram: Array, scale_mode: ScaleMode = "min", *, precision: float) -> Array:
    """Return the weights ``s V Λ^(-1/2) Vᵀ 1`` ``[T]`` of ``G = V Λ Vᵀ``.

    gram: ``G = J Jᵀ`` ``[T, T]``, float64, of any scale. scale_mode: what s is, over the eigenvalues that
    count: the root of the smallest (``"min"``), of the median (the lower of two) or of the mean
    (``"rmse"``). precision: the relative error of G: those eigenvalues count that exceed the largest times T
    times that, which is what errors of that size amount to. Ones where G is zero.

    Raises `SolverError` where G is not finite or has a negative diagonal.
    """
    weights, solved = _aligned_weights(gram, scale_mode == "min", scale_mode == "median", precision)
    if not solved:
        raise failure("aligned_weights", gram, math.inf, 0)
    return weights


def config_weights(gram: Array, *, precision: float) -> Array:
    """Return the weights ``[T]`` of the vector that has one cosine with all task gradients.

    gram: ``G = J Jᵀ`` ``[T, T]``, float64, of any scale. precision: the relative error of G, as for
    `aligned_weights`.

    With C the cosines between the gradients, ``C z = 1`` (by the pseudo-inverse) makes
    ``sum_t z_t g_t / |g_t|`` that vector up to its length, which is then set to the sum of the gradients'
    projections on it. Zeros where no such vector exists: the pseudo-inverse gives 0 for gradients that
    cancel. A gradient of length 0 has weight 0.

    Raises `SolverError` where G is not finite or has a negative diagonal.
    """
    weights, solved = _config_weights(gram, precision)
    if not solved:
        raise failure("config_weights", gram, math.inf, 0)
    return weights


@compiled()
def _aligned_weights(gram: Array, least: bool, median: bool, precision: float) -> tuple[Array, bool]:
    count = len(gram)
    if not least_square(gram) >= 0:
        return np.ones(count), False
    largest = np.diag(gram).max()
    if largest == 0:
        return np.ones(count), True
    values, sums, path, found = decompose(gram / largest, np.ones(count))
    kept = np.sort(values[values > values.max() * count * precision])
    square = kept[0] if least else kept[(len(kept) - 1) // 2] if median else kept.mean()
    for i in range(count):
        # of gradients that cancel, such as two opposite ones, nothing is left: not even rounding errors
        if values[i] < kept[0] or abs(sums[i]) <= count * ROUNDING:
            sums[i] = 0.0
        else:
            sums[i] *= np.sqrt(square / values[i])
    return recompose(path, sums), found


@compiled()
def _config_weights(gram: Array, precision: float) -> tuple[Array, bool]:
    count, shortest = len(gram), least_square(gram)
    if not shortest >= 0:
        return np.zeros(count), False
    cosines, lengths = cosines_and_lengths(gram, shortest)
    present = np.zeros(count)
    for i in range(count):
        present[i] = gram[i, i] > 0
    values, parts, path, found = decompose(cosines, present)
    smallest, square = values.max() * count * precision, 0.0
    for i in range(count):
        if values[i] > smallest:
            square += parts[i] * parts[i]
            parts[i] /= values[i]
        else:
            parts[i] = 0.0
    if np.sqrt(square) <= count * precision:
        return np.zeros(count), found
    direction = present * recompose(path, parts)
    along = across = 0.0
    for i in range(count):
        projection = product(cosines[i], direction)
        along += lengths[i] * present[i] * projection
        across += direction[i] * projection
    return direction / lengths * (along / across), found
