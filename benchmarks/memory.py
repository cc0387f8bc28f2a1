"""What memory alone costs an update from gradients: a bound for methods that weigh by their products."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlbench.compiled import compiled

Array = NDArray[np.float32]

_BLOCK = 1 << 9
"""Elements of the first gradient that stay in the innermost cache until all others are added."""


@compiled()
def pass_over(gradients: Array, others: Array) -> Any:
    """Read gradients ``[T, P]`` and others ``[S, P]`` once, the gradients again, and write over the first.

    The weights depend on all that is read first, so that no method can do with less. Returns a sum, for which
    all has to be read. One thread reads row after row: on two cores nothing was faster, neither blocks of all
    rows, nor two threads, nor torch's sums, which have two.
    """
    total = np.float32(0)
    for row in range(len(gradients)):
        total += _sum(gradients[row])
    for row in range(len(others)):
        total += _sum(others[row])
    for begin in range(0, gradients.shape[1], _BLOCK):
        end = min(begin + _BLOCK, gradients.shape[1])
        first = gradients[0, begin:end]
        for row in range(1, len(gradients) - 1, 2):
            _add_two(first, gradients[row, begin:end], gradients[row + 1, begin:end])
        if len(gradients) % 2 == 0:
            _add(first, gradients[-1, begin:end])
    return total


@compiled(reorder=True)
def _sum(vector: Array) -> Any:
    total = np.float32(0)
    for k in range(len(vector)):
        total += vector[k]
    return total


@compiled()
def _add(total: Array, vector: Array) -> None:
    for k in range(len(total)):
        total[k] += vector[k]


@compiled()
def _add_two(total: Array, vector: Array, another: Array) -> None:
    for k in range(len(total)):
        total[k] += vector[k] + another[k]
