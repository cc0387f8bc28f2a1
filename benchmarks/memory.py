"""What memory alone costs an update from gradients: a bound for methods that weigh by their products."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from mtlbench.compiled import HEAD, Shared, arrive, compiled, pointer, take, told

_PIECE = 1 << 14
"""Elements that a thread reads at a time."""

_BLOCK = 1 << 9
"""Elements of the first gradient that stay in the innermost cache until all others are added."""

_BLANK = array("q", HEAD)


class Pass:
    """Reads gradients ``[T, P]`` and others ``[S, P]`` once, the gradients again, and writes over the first.

    Nothing is asked but to read and to add, by one thread or by all, which share the work as in our own code,
    row after row at first; nothing was faster on two cores. All is float32.
    """

    def __init__(self, gradients: Tensor, others: Tensor) -> None:
        self.read = [matrix for matrix in (gradients, others) if len(matrix)]
        self.sums = [torch.empty(1 + (matrix.numel() - 1) // _PIECE) for matrix in self.read]
        self.orders = [
            array("q", [*HEAD, *matrix.shape, matrix.data_ptr(), sums.data_ptr()])
            for matrix, sums in zip(self.read, self.sums, strict=True)
        ]

    def __call__(self) -> None:
        """Do it."""
        for order in self.orders:
            self._run(_READ, order)
        self._run(_ADD, self.orders[0])

    def _run(self, code: Shared, order: array[int]) -> None:
        order[: len(HEAD)] = _BLANK
        code(torch.float32, order, order[len(HEAD)] * order[len(HEAD) + 1])


def _read(order: Any) -> None:
    head = carray(order, 1).ctypes.data
    given = told(head, 4)
    size = given[0] * given[1]
    numbers, pieces = carray(pointer(given[2]), size, np.float32), 1 + (size - 1) // _PIECE
    sums, side = carray(pointer(given[3]), pieces, np.float32), arrive(head)
    while True:
        piece = take(head, side, pieces, False)
        if piece == pieces:
            break
        sums[piece] = _sum(numbers[piece * _PIECE : min((piece + 1) * _PIECE, size)])


def _add(order: Any) -> None:
    head = carray(order, 1).ctypes.data
    given = told(head, 4)
    rows, size = given[0], given[1]
    numbers, pieces = carray(pointer(given[2]), (rows, size), np.float32), 1 + (size - 1) // _PIECE
    side = arrive(head)
    while True:
        piece = take(head, side, pieces, True)
        if piece == pieces:
            break
        start = piece * _PIECE
        for begin in range(start, min(start + _PIECE, size), _BLOCK):
            end = min(begin + _BLOCK, size)
            first = numbers[0, begin:end]
            for row in range(1, rows - 1, 2):
                _add_two(first, numbers[row, begin:end], numbers[row + 1, begin:end])
            if rows % 2 == 0:
                _add_one(first, numbers[rows - 1, begin:end])


_READ, _ADD = Shared(_read), Shared(_add)


@compiled(reorder=True)
def _sum(vector: Any) -> Any:
    total = np.float32(0)
    for k in range(len(vector)):
        total += vector[k]
    return total


@compiled()
def _add_one(total: Any, vector: Any) -> None:
    for k in range(len(total)):
        total[k] += vector[k]


@compiled()
def _add_two(total: Any, vector: Any, another: Any) -> None:
    for k in range(len(total)):
        total[k] += vector[k] + another[k]
