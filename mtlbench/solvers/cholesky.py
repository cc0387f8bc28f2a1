"""Cholesky's factorisation of small matrices, for kernels: with few rows it ends before LAPACK begins."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mtlbench.compiled import compiled

Array = NDArray[np.float64]


@compiled(reorder=True)
def factorise(matrix: Array, chosen: NDArray[np.int64], factor: Array) -> bool:
    """Write U of ``Uᵀ U = matrix[chosen][:, chosen]``, a triangle, to the first rows of ``factor``.

    matrix, factor: ``[T, T]``, the first symmetric. chosen: indices ``[n]``. False where their columns depend
    on each other within rounding.
    """
    count = len(chosen)
    for i in range(count):
        row = chosen[i]
        for j in range(i, count):
            factor[i, j] = matrix[row, chosen[j]]
    for k in range(count):
        if not factor[k, k] > 0:
            return False
        root = math.sqrt(factor[k, k])
        for j in range(k, count):
            factor[k, j] /= root
        for i in range(k + 1, count):
            multiple = factor[k, i]
            for j in range(i, count):
                factor[i, j] -= multiple * factor[k, j]
    return True


@compiled(reorder=True)
def substitute(factor: Array, vector: Array) -> None:
    """Solve ``Uᵀ U x = vector`` ``[n]`` in its place, with U of `factorise`."""
    count = len(vector)
    for i in range(count):
        vector[i] /= factor[i, i]
        for j in range(i + 1, count):
            vector[j] -= factor[i, j] * vector[i]
    for i in range(count - 1, -1, -1):
        for j in range(i + 1, count):
            vector[i] -= factor[i, j] * vector[j]
        vector[i] /= factor[i, i]
