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

from mtlbench.compiled import HEAD, LETTERS, Shared, arrive, compiled, last, pointer, take, told

Array = NDArray[Any]
Addresses = NDArray[np.int64]

STRETCH = 1 << 14
"""Elements of a parameter that one thread takes at a time."""

_BLOCK = 1 << 12
"""Elements that are summed in the gradients' own precision, in as many parts as a register has places, before
the sum goes on in float64. A multiple of them makes a stretch."""

_WIDEST = 5
"""Tasks that are multiplied with as many others at a time: all their products fit into a core's registers."""

_EVERY, _UPPER, _DIAGONAL = 0, 1, 2


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
        self._lengths, self._orders, self._places = array("q"), array("q"), array("q")
        self._stretches = self._elements = 0
        # The last task is there several times if need be, so that tiles cover all.
        self._more = -tasks % self.width

    def add(self, parts: Sequence[Tensor | None]) -> bool:
        """Add the tasks' gradients of a parameter and return True, or False where there is no code for them.

        There is where all are on the CPU, in one precision, the same as for the other parameters, and with
        their elements in one order of memory, without gaps.
        """
        head, places, contiguous = parts[0], [], True
        if head is None or (dtype := self.dtype or head.dtype) not in LETTERS:
            return False
        length = head.numel()
        for part in parts:
            if part is None or part.dtype is not dtype or not part.is_cpu or part.numel() != length:
                return False
            contiguous = contiguous and part.is_contiguous()
            places.append(part.data_ptr())
        order = 0 if contiguous else order_of(cast("Sequence[Tensor]", parts))
        if order is None:
            return False
        self.dtype = dtype
        self._parts.append(parts)
        self._lengths.append(length)
        self._orders.append(order)
        self._places.extend(places)
        if self._more:
            self._places.extend(places[-1:] * self._more)
        self._stretches += -(-length // STRETCH)
        self._elements += len(places) * length
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
        wide = columns.tasks + columns._more
        parts = array("d", [0.0]) * (self._stretches * (self.tasks + self._more) * wide)
        answer = torch.from_numpy(np.empty((self.tasks, columns.tasks)))  # sooner there than torch.empty's
        places, _ = columns._places.buffer_info()
        sums, _ = parts.buffer_info()
        self._run(_MULTIPLY, places, wide, columns.tasks, form, self.width, sums, answer.data_ptr())
        return answer

    def combine(self, weights: Sequence[float]) -> None:
        """Write over the first row the sum of all rows times their ``weights`` ``[tasks]``."""
        if self.dtype:
            factors = array(LETTERS[self.dtype], weights)
            self._run(_COMBINE, factors.buffer_info()[0])

    def _run(self, code: Shared, *more: int) -> None:
        lengths, count = self._lengths.buffer_info()
        places, _ = self._places.buffer_info()
        own = lengths, count, places, self.tasks + self._more, self.tasks
        order = array("q", (*HEAD, self._stretches, *own, *more))
        code(cast("torch.dtype", self.dtype), order, self._elements)


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
    head = zero.ctypes.data
    given = told(head, 13)
    stretches, tasks, others, form, width = given[0], given[5], given[8], given[9], given[10]
    rows = carray(pointer(given[3]), (given[2], given[4]), np.int64)
    columns = carray(pointer(given[6]), (given[2], given[7]), np.int64)
    found = carray(pointer(given[11]), (stretches, given[4], given[7]), np.float64)
    side, p, before = arrive(head), 0, 0
    while True:
        stretch, p, before, begin, end = _take(head, side, False, p, before)
        if stretch == stretches:
            break
        for at in range(begin, end, _BLOCK):
            offset, size = at * zero.itemsize, min(_BLOCK, end - at)
            _add_products(rows[p], columns[p], offset, size, zero, form, width, found[stretch])
        if last(head, stretches):
            _add_up(found, form, carray(pointer(given[12]), (tasks, others), np.float64))


def _combine(order: Any) -> None:
    """Take stretch after stretch and write its rows' weighted sum over the first; see `_multiply`."""
    zero = carray(order, 1)
    head = zero.ctypes.data
    given = told(head, 7)
    rows = carray(pointer(given[3]), (given[2], given[4]), np.int64)[:, : given[5]]  # each task once
    weights = carray(pointer(given[6]), given[5], zero.dtype)
    side, p, before = arrive(head), 0, 0
    while True:
        stretch, p, before, begin, end = _take(head, side, True, p, before)
        if stretch == given[0]:
            break
        for at in range(begin, end, _BLOCK):
            _write_sum(rows[p], at * zero.itemsize, min(_BLOCK, end - at), weights)


_MULTIPLY, _COMBINE = Shared(_multiply), Shared(_combine)


@compiled()
def _take(head: int, side: int, outwards: bool, p: int, before: int) -> tuple[int, int, int, int, int]:
    """Return the number of the next stretch (see `take`), and what it is.

    That is its parameter, how many stretches there are before that, and where in it the stretch begins and
    ends. p, before: those of the stretch that this thread had.
    """
    given = told(head, 3)
    stretch = take(head, side, given[0], outwards)
    if stretch == given[0]:
        return stretch, p, before, 0, 0
    lengths = carray(pointer(given[1]), given[2], np.int64)
    while stretch < before:
        p -= 1
        before -= -(-lengths[p] // STRETCH)
    own = -(-lengths[p] // STRETCH)
    while stretch - before >= own:
        before += own
        p += 1
        own = -(-lengths[p] // STRETCH)
    begin = (stretch - before) * STRETCH
    return stretch, p, before, begin, min(begin + STRETCH, lengths[p])


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
