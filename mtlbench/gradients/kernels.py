"""Sums over the elements of many gradients, compiled: what a CPU does to gradients in float32 or float64.

Gradients are given to machine code as addresses, so that one call serves any number of tasks and parameters
without a copy. Threads take its work stretch by stretch, of `STRETCH` elements of a parameter, and the sums
of stretches are added one after another, whoever found them: they do not depend on how many threads there
are.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numba import carray
from numpy.typing import NDArray
from torch import Tensor

from mtlbench.compiled import Shared, compiled, count_up, pointer

Array = NDArray[Any]
Addresses = NDArray[np.int64]

STRETCH = 1 << 14
"""Elements of a parameter that one thread takes at a time."""

MANY = 1 << 18
"""Elements of all gradients from which on threads share them: with fewer, one is done before others began."""

_BLOCK = 1 << 12
"""Elements that are summed in the gradients' own precision, in as many parts as a register has places, before
the sum goes on in float64. A multiple of them makes a stretch."""

_WIDEST = 5
"""Tasks that are multiplied with as many others at a time: all their products fit into a core's registers."""

_EVERY, _UPPER, _DIAGONAL = 0, 1, 2

_LETTERS = {torch.float32: "f", torch.float64: "d"}
"""What `array` calls the precisions for which there is code."""


def order_of(parts: Sequence[Tensor]) -> int | None:
    """Return the number of the order of memory that gradients of one parameter have in common, without gaps.

    None where they have none, or one that no layer gives.
    """
    if all(part.is_contiguous() for part in parts):
        return 0
    if all(part.dim() == 4 and part.is_contiguous(memory_format=torch.channels_last) for part in parts):
        return 1
    return 2 if all(part.dim() == 2 and part.t().is_contiguous() for part in parts) else None


class Rows:
    """Gradients of some parameters, a row for each task, by where they lie in memory.

    tasks: how many, 1 or more. width: of tiles, where it is not to be what is best for them (`width_for`).
    """

    def __init__(self, tasks: int, width: int = 0) -> None:
        self.tasks, self.width = tasks, width or width_for(tasks)
        self.dtype: torch.dtype | None = None
        self._parts: list[Sequence[Tensor | None]] = []  # so that their memory is not given to others
        self._lengths: list[int] = []
        self._orders: list[int] = []
        self._places: list[int] = []
        self._stretches = 0
        # The last task is there several times if need be, so that tiles cover all.
        self._more = -tasks % self.width

    def add(self, parts: Sequence[Tensor | None]) -> bool:
        """Add the tasks' gradients of a parameter and return True, or False where there is no code for them.

        There is where all are on the CPU, in one precision, the same as for the other parameters, and with
        their elements in one order of memory, without gaps.
        """
        head, places, order = parts[0], [], 0
        if head is None or (dtype := self.dtype or head.dtype) not in _LETTERS:
            return False
        length = head.numel()
        for part in parts:
            if part is None or part.dtype is not dtype or not part.is_cpu or part.numel() != length:
                return False
            if not part.is_contiguous():
                order = 1
            places.append(part.data_ptr())
        if order:
            found = order_of(cast("Sequence[Tensor]", parts))
            if found is None:
                return False
            order = found
        self.dtype = dtype
        self._parts.append(parts)
        self._lengths.append(length)
        self._orders.append(order)
        self._places += places
        if self._more:
            self._places += places[-1:] * self._more
        self._stretches += -(-length // STRETCH)
        return True

    def fits(self, others: Rows) -> bool:
        """Say whether these can be multiplied: as many elements of each parameter, in one order of memory."""
        return (others.dtype, others.width, others._lengths, others._orders) == (
            self.dtype,
            self.width,
            self._lengths,
            self._orders,
        )

    def products(self, others: Rows | None = None, *, diagonal: bool = False) -> Tensor:
        """Return the products of each row with each of the ``others``, float64 ``[tasks, others]``.

        others: rows that fit, or None for these: then the answer is symmetric, bit for bit. diagonal: whether
        the rest of that may be left 0.
        """
        columns = others or self
        if others and not self.fits(others):
            raise ValueError("these rows cannot be multiplied with each other")
        if not self._stretches:
            return torch.zeros(self.tasks, columns.tasks, dtype=torch.float64)
        form = _EVERY if others else _DIAGONAL if diagonal else _UPPER
        high, wide = self.tasks + self._more, columns.tasks + columns._more
        memory = columns._memory() if others else None
        parts = array("d", [0.0]) * (self._stretches * high * wide)
        answer = torch.empty(self.tasks, columns.tasks, dtype=torch.float64)
        sums = parts.buffer_info()[0], answer.data_ptr()
        other = memory.buffer_info()[0] if memory else 0
        self._run(_MULTIPLY, other, wide, columns.tasks, form, self.width, *sums)
        return answer

    def combine(self, weights: Sequence[float]) -> None:
        """Write over the first row the sum of all rows times their ``weights`` ``[tasks]``."""
        if self.dtype:
            factors = array(_LETTERS[self.dtype], weights)
            self._run(_COMBINE, factors.buffer_info()[0])

    def _memory(self) -> array[int]:
        """Return what machine code reads: elements of each parameter, then where its gradients lie."""
        return array("q", self._lengths + self._places)

    def _run(self, code: Shared, *more: int) -> None:
        threads = torch.get_num_threads() if self.tasks * sum(self._lengths) >= MANY else 1
        memory = self._memory()
        own = memory.buffer_info()[0], len(self._lengths), self.tasks + self._more, self.tasks
        order = array("q", (0, 0, 0, self._stretches, *own, *more))
        code(cast("torch.dtype", self.dtype), order.buffer_info()[0], threads)


def width_for(tasks: int) -> int:
    """Return how wide tiles are, of which as few as may be cover all tasks."""
    tiles = -(-tasks // _WIDEST)
    return -(-tasks // tiles)


def _tiles(square: bool) -> Any:
    """Return machine code that adds up the products of up to `_WIDEST` tasks with as many others.

    It is written out product by product: then each has a register of its own, every element is loaded once,
    and memory is read in one stream for each task, which is as fast as it can be read. square: whether the
    others are others; else they are the tasks themselves, and the lower triangle is left out.

    ``code(rows, columns, offset, size, like, width, found)`` adds to ``found`` ``[width, width]`` the
    products of ``size`` elements, which lie ``offset`` bytes behind the addresses ``rows`` and ``columns``
    ``[width]`` (the same ones, but for a square), and are summed in the type of ``like``.
    """
    other = "column" if square else "row"
    lines = ["def code(rows, columns, offset, size, like, width, found):"]
    for width in range(1, _WIDEST + 1):
        vectors = [f"{side}{i}" for side in dict.fromkeys(("row", other)) for i in range(width)]
        places = [(i, j) for i in range(width) for j in range(0 if square else i, width)]
        lines += [
            f"    if width == {width}:",
            *(
                f"        {v} = carray(pointer({v[:-1]}s[{v[-1]}] + offset), size, like.dtype)"
                for v in vectors
            ),
            *(f"        sum{i}{j} = like[0]" for i, j in places),
            "        for k in range(size):",
            *(f"            {v}_k = {v}[k]" for v in vectors),
            *(f"            sum{i}{j} += row{i}_k * {other}{j}_k" for i, j in places),
            *(f"        found[{i}, {j}] += sum{i}{j}" for i, j in places),
        ]
    made: dict[str, Any] = {"carray": carray, "pointer": pointer, "__name__": __name__}
    # Under the name of this file, so that machine code is kept as that of the functions in it.
    exec(compile("\n".join(lines), __file__, "exec"), made)
    made["code"].__qualname__ = "_square" if square else "_triangle"
    return compiled(reorder=True)(made["code"])


_triangle, _square = _tiles(square=False), _tiles(square=True)


def _multiply(order: Any) -> None:
    """Take stretch after stretch and find the products of its rows and columns; the last adds them up.

    order: a 0 of the gradients' type, from where on numbers say what to do (see `Rows`).
    """
    zero = carray(order, 1)
    told = carray(pointer(zero.ctypes.data), 15, np.int64)
    stretches, own, count, high, tasks = told[3], told[4], told[5], told[6], told[7]
    other, wide, others, form, width = told[8], told[9], told[10], told[11], told[12]
    lengths, rows = _rows(own, count, high)
    columns = _rows(other, count, wide)[1] if other else rows
    found = carray(pointer(told[13]), (stretches, high, wide), np.float64)
    p = before = 0
    while True:
        stretch = count_up(told[1:].ctypes.data)
        if stretch >= stretches:
            break
        p, before = _find(lengths, stretch, p, before)
        begin = (stretch - before) * STRETCH
        end = min(begin + STRETCH, lengths[p])
        found[stretch] = 0
        for at in range(begin, end, _BLOCK):
            offset, size = at * zero.itemsize, min(_BLOCK, end - at)
            _add_products(rows[p], columns[p], offset, size, zero, form, width, found[stretch])
        if count_up(told[2:].ctypes.data) == stretches - 1:
            _add_up(found, form, carray(pointer(told[14]), (tasks, others), np.float64))


def _combine(order: Any) -> None:
    """Take stretch after stretch and write its rows' weighted sum over the first; see `_multiply`."""
    zero = carray(order, 1)
    told = carray(pointer(zero.ctypes.data), 9, np.int64)
    stretches, own, count, high, tasks = told[3], told[4], told[5], told[6], told[7]
    lengths, rows = _rows(own, count, high)
    weights = carray(pointer(told[8]), tasks, zero.dtype)
    p = before = 0
    while True:
        stretch = count_up(told[1:].ctypes.data)
        if stretch >= stretches:
            break
        p, before = _find(lengths, stretch, p, before)
        begin = (stretch - before) * STRETCH
        end = min(begin + STRETCH, lengths[p])
        for at in range(begin, end, _BLOCK):
            _write_sum(rows[p], at * zero.itemsize, min(_BLOCK, end - at), weights)


_MULTIPLY, _COMBINE = Shared(_multiply), Shared(_combine)


@compiled()
def _rows(address: int, count: int, tasks: int) -> tuple[Addresses, Addresses]:
    """Return the lengths of parameters ``[count]`` and where their gradients lie ``[count, tasks]``."""
    lengths = carray(pointer(address), count, np.int64)
    return lengths, carray(pointer(address + count * lengths.itemsize), (count, tasks), np.int64)


@compiled()
def _find(lengths: Addresses, stretch: int, p: int, before: int) -> tuple[int, int]:
    """Return the parameter that a stretch is of, and the number of its first; p, before: those of another."""
    while True:
        own = (lengths[p] + STRETCH - 1) // STRETCH
        if stretch - before < own:
            return p, before
        before += own
        p += 1


@compiled()
def _add_products(
    rows: Addresses,
    columns: Addresses,
    offset: int,
    size: int,
    like: Array,
    form: int,
    width: int,
    found: Array,
) -> None:
    """Add to ``found`` ``[R, C]`` the products of ``size`` elements of rows and columns behind ``offset``.

    rows, columns: addresses ``[R]``, ``[C]``. like: one 0 of the gradients' type. form: `_EVERY` product;
    where rows are columns, the `_UPPER` triangle, or what is needed for the `_DIAGONAL`. width: of the tiles,
    which divides R and C.
    """
    for i in range(0, len(rows), width):
        if form != _EVERY:
            _triangle(rows[i:], rows[i:], offset, size, like, width, found[i:, i:])
        if form == _DIAGONAL:
            continue
        for j in range(0 if form == _EVERY else i + width, len(columns), width):
            _square(rows[i:], columns[j:], offset, size, like, width, found[i:, j:])


@compiled()
def _add_up(found: Array, form: int, total: Array) -> None:
    """Write to ``total`` the sum of ``found`` over the stretches, with what `_add_products` left out."""
    for i in range(len(total)):
        for j in range(total.shape[1]):
            if form == _EVERY or j == i or (j > i and form == _UPPER):
                total[i, j] = 0
                for stretch in range(len(found)):
                    total[i, j] += found[stretch, i, j]
            else:
                total[i, j] = 0 if form == _DIAGONAL else total[j, i]


@compiled()
def _write_sum(rows: Addresses, offset: int, size: int, weights: Array) -> None:
    total = carray(pointer(rows[0] + offset), size, weights.dtype)
    kept = weights[0]  # what there is of the sum is multiplied by
    last = len(rows) - 1
    if last == 0:
        for k in range(size):
            total[k] *= kept
    for t in range(1, len(rows), 4):  # few passes over the sum
        u, v, w = min(t + 1, last), min(t + 2, last), min(t + 3, last)
        one = carray(pointer(rows[t] + offset), size, weights.dtype)
        two = carray(pointer(rows[u] + offset), size, weights.dtype)
        three = carray(pointer(rows[v] + offset), size, weights.dtype)
        four = carray(pointer(rows[w] + offset), size, weights.dtype)
        a, b, c, d = weights[t], weights[u], weights[v], weights[w]
        if t == last:
            for k in range(size):
                total[k] = kept * total[k] + a * one[k]
        elif u == last:
            for k in range(size):
                total[k] = kept * total[k] + a * one[k] + b * two[k]
        elif v == last:
            for k in range(size):
                total[k] = kept * total[k] + a * one[k] + b * two[k] + c * three[k]
        else:
            for k in range(size):
                total[k] = kept * total[k] + a * one[k] + b * two[k] + c * three[k] + d * four[k]
        kept = weights.dtype.type(1)
