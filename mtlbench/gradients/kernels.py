"""Sums over the elements of many gradients, compiled: what a CPU does to gradients in float32 or float64.

Gradients are given to machine code as addresses, so that one call serves any number of tasks and parameters
without a copy. A call does its share of the work: of all stretches of `STRETCH` elements those of number
``share``, ``share + shares``, ... The sums of stretches are added one after another, whoever found them:
they do not depend on how many threads there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import carray, types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from mtlbench.compiled import compiled

Array = NDArray[Any]
Addresses = NDArray[np.int64]
Rows = Sequence[Sequence[Tensor]]
"""Of each parameter a gradient for each task, their elements in one order of memory, without gaps."""

STRETCH = 1 << 16
"""Elements of a parameter that one thread takes at a time."""

MANY = 1 << 22
"""Elements of all gradients from which on threads share them: with fewer, an idle core wakes up too late."""

_BLOCK = 1 << 12
"""Elements that are summed in the gradients' own precision, in as many parts as a register has places, before
the sum goes on in float64. A multiple of them makes a stretch."""

_WIDEST = 5
"""Tasks that are multiplied with as many others at a time: all their products fit into a core's registers."""

_EVERY, _UPPER, _DIAGONAL = 0, 1, 2

_ZEROS: dict[torch.dtype | None, Array] = {torch.float32: np.zeros(1, np.float32), torch.float64: np.zeros(1)}
"""A 0 of every precision for which there is code."""


def suits(rows: Rows) -> bool:
    """Say whether these gradients are all on the CPU, and in one precision for which there is code."""
    found = {part.dtype if part.is_cpu else None for parts in rows for part in parts}
    return len(found) == 1 and found.issubset(_ZEROS)


def products(rows: Rows, columns: Rows, *, diagonal: bool = False) -> NDArray[np.float64]:
    """Return the products of each task's row with each column over all parameters, float64 ``[R, C]``.

    rows, columns: gradients that `suits` likes. Where they are the same object the answer is symmetric, bit
    for bit. diagonal: whether the rest may be left 0.
    """
    same = columns is rows
    size = len(rows[0]), len(columns[0])
    form = _EVERY if not same else _DIAGONAL if diagonal else _UPPER
    width = _width(max(size))
    left, lengths = _addresses(rows, width)
    right = left if same else _addresses(columns, width)[0]
    like = _ZEROS[rows[0][0].dtype]
    counts, threads = np.array(lengths), _threads(size[0] * sum(lengths))
    if threads == 1:
        total = _all_products(left, right, counts, like, form, width)
    else:
        found = _nothing(left, right, counts)
        _divide(
            lambda share: _add_products(left, right, counts, like, form, width, share, threads, found),
            threads,
        )
        total = _add_up(found, form)
    products: NDArray[np.float64] = total[: size[0], : size[1]]
    return products


def combine(rows: Rows, weights: Sequence[float]) -> None:
    """Write over the first task's gradients the sum of all times their ``weights`` ``[T]``; see `suits`."""
    places, lengths = _addresses(rows)
    factors: Array = np.array(weights, _ZEROS[rows[0][0].dtype].dtype)
    counts, threads = np.array(lengths), _threads(len(weights) * sum(lengths))
    _divide(lambda share: _write_sums(places, counts, factors, share, threads), threads)


def _width(tasks: int) -> int:
    """Return how wide tiles are, of which as few as may be cover all tasks."""
    tiles = -(-tasks // _WIDEST)
    return -(-tasks // tiles)


def _addresses(rows: Rows, width: int = 1) -> tuple[Addresses, list[int]]:
    """Return where gradients lie ``[parameters, T]``, and of how many elements those of a parameter are.

    width: what T is a multiple of, because the last task is there several times if need be.
    """
    more = -len(rows[0]) % width
    places = [[part.data_ptr() for part in parts] for parts in rows]
    if more:
        places = [found + found[-1:] * more for found in places]
    return np.array(places), [parts[0].numel() for parts in rows]


def _threads(elements: int) -> int:
    return torch.get_num_threads() if elements >= MANY else 1


def _divide(work: Callable[[int], None], threads: int) -> None:
    """Do all shares of ``work(share)``, as many at a time as there are threads."""
    others = [_pool(os.getpid(), threads).submit(work, share) for share in range(1, threads)]
    work(0)
    for other in others:
        other.result()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return the threads of this process: those of one that it was forked from are not here."""
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="gradients")


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(context: Any, address: Any) -> Any:
    """Return an integer as a pointer."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], target.get_value_type(signature.return_type))

    return types.voidptr(types.int64), generate


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
                f"        {v} = carray(_pointer({v[:-1]}s[{v[-1]}] + offset), size, like.dtype)"
                for v in vectors
            ),
            *(f"        sum{i}{j} = like[0]" for i, j in places),
            "        for k in range(size):",
            *(f"            {v}_k = {v}[k]" for v in vectors),
            *(f"            sum{i}{j} += row{i}_k * {other}{j}_k" for i, j in places),
            *(f"        found[{i}, {j}] += sum{i}{j}" for i, j in places),
        ]
    made: dict[str, Any] = {"carray": carray, "_pointer": _pointer, "__name__": __name__}
    # Under the name of this file, so that machine code is kept as that of the functions in it.
    exec(compile("\n".join(lines), __file__, "exec"), made)
    made["code"].__qualname__ = "_square" if square else "_triangle"
    return compiled(reorder=True)(made["code"])


_triangle, _square = _tiles(square=False), _tiles(square=True)


@compiled()
def _add_products(
    rows: Addresses,
    columns: Addresses,
    lengths: Addresses,
    like: Array,
    form: int,
    width: int,
    share: int,
    shares: int,
    found: Array,
) -> None:
    """Add to ``found`` ``[stretches, R, C]`` the products of each stretch of rows with that of columns.

    rows, columns: addresses ``[parameters, R]``, ``[parameters, C]``. lengths: elements ``[parameters]``.
    like: one 0 of the gradients' type. form: `_EVERY` product; where rows are columns, the `_UPPER` triangle,
    or what is needed for the `_DIAGONAL`. width: of the tiles, which divides R and C.
    """
    stretch = 0
    for p in range(len(lengths)):
        for begin in range(0, lengths[p], STRETCH):
            if stretch % shares == share:
                end = min(begin + STRETCH, lengths[p])
                for at in range(begin, end, _BLOCK):
                    offset, size = at * like.itemsize, min(_BLOCK, end - at)
                    for i in range(0, rows.shape[1], width):
                        if form != _EVERY:
                            _triangle(
                                rows[p, i:], rows[p, i:], offset, size, like, width, found[stretch, i:, i:]
                            )
                        if form == _DIAGONAL:
                            continue
                        for j in range(0 if form == _EVERY else i + width, columns.shape[1], width):
                            _square(
                                rows[p, i:], columns[p, j:], offset, size, like, width, found[stretch, i:, j:]
                            )
            stretch += 1


@compiled()
def _all_products(
    rows: Addresses, columns: Addresses, lengths: Addresses, like: Array, form: int, width: int
) -> Array:
    """Return ``[R, C]`` products, made by one thread."""
    found = _nothing(rows, columns, lengths)
    _add_products(rows, columns, lengths, like, form, width, 0, 1, found)
    return _add_up(found, form)


@compiled()
def _nothing(rows: Addresses, columns: Addresses, lengths: Addresses) -> Array:
    """Return zeros for the products of each stretch, ``[stretches, R, C]``."""
    stretches = 0
    for length in lengths:
        stretches += (length + STRETCH - 1) // STRETCH
    return np.zeros((stretches, rows.shape[1], columns.shape[1]))


@compiled()
def _add_up(found: Array, form: int) -> Array:
    """Return the sum over the stretches, with what `_add_products` left out."""
    total: Array = found[0]
    for stretch in range(1, len(found)):
        total += found[stretch]
    if form != _EVERY:
        for i in range(len(total)):
            for j in range(i):
                total[i, j] = total[j, i] = 0 if form == _DIAGONAL else total[j, i]
    return total


@compiled()
def _write_sums(rows: Addresses, lengths: Addresses, weights: Array, share: int, shares: int) -> None:
    """Write over the first of the rows their weighted sum.

    rows: addresses ``[parameters, T]``. lengths: elements ``[parameters]``. weights ``[T]`` are of the rows'
    type.
    """
    stretch = 0
    for p in range(len(lengths)):
        for begin in range(0, lengths[p], STRETCH):
            if stretch % shares == share:
                end = min(begin + STRETCH, lengths[p])
                for at in range(begin, end, _BLOCK):
                    _write_sum(rows[p], at * weights.itemsize, min(_BLOCK, end - at), weights)
            stretch += 1


@compiled()
def _write_sum(rows: Addresses, offset: int, size: int, weights: Array) -> None:
    total = carray(_pointer(rows[0] + offset), size, weights.dtype)
    kept = weights[0]  # what there is of the sum is multiplied by
    last = len(rows) - 1
    if last == 0:
        for k in range(size):
            total[k] *= kept
    for t in range(1, len(rows), 4):  # few passes over the sum
        u, v, w = min(t + 1, last), min(t + 2, last), min(t + 3, last)
        one = carray(_pointer(rows[t] + offset), size, weights.dtype)
        two = carray(_pointer(rows[u] + offset), size, weights.dtype)
        three = carray(_pointer(rows[v] + offset), size, weights.dtype)
        four = carray(_pointer(rows[w] + offset), size, weights.dtype)
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
