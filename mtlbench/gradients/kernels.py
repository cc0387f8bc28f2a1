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

MANY = 1 << 23
"""Elements of all gradients from which on threads share them: with fewer, an idle core wakes up too late."""

_BLOCK = 1 << 9
"""Elements that are summed in the gradients' own precision before the sum goes on in float64; those of a few
tasks fit into the innermost cache. A multiple of them makes a stretch."""

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
    left, lengths = _addresses(rows)
    right = left if same else _addresses(columns)[0]
    form = _EVERY if not same else _DIAGONAL if diagonal else _UPPER
    like = _ZEROS[rows[0][0].dtype]
    found = np.zeros((_stretches(lengths), left.shape[1], right.shape[1]))
    _divide(
        lambda share, shares: _add_products(left, right, lengths, like, form, share, shares, found),
        len(rows[0]) * len(found) * STRETCH,
    )
    _add_up(found, same)
    total: NDArray[np.float64] = found[0]
    return total


def combine(rows: Rows, weights: Sequence[float]) -> None:
    """Write over the first task's gradients the sum of all times their ``weights`` ``[T]``; see `suits`."""
    places, lengths = _addresses(rows)
    factors: Array = np.array(weights, _ZEROS[rows[0][0].dtype].dtype)
    _divide(
        lambda share, shares: _write_sums(places, lengths, factors, share, shares),
        len(weights) * _stretches(lengths) * STRETCH,
    )


def _addresses(rows: Rows) -> tuple[Addresses, Addresses]:
    """Return where gradients lie ``[parameters, T]``, and of how many elements they are ``[parameters]``."""
    places = np.array([[part.data_ptr() for part in parts] for parts in rows])
    return places, np.array([parts[0].numel() for parts in rows])


def _divide(work: Callable[[int, int], None], elements: int) -> None:
    """Do all shares of ``work(share, shares)``, several at a time where there are many elements."""
    threads = torch.get_num_threads() if elements >= MANY else 1
    others = [_pool(os.getpid(), threads).submit(work, share, threads) for share in range(1, threads)]
    work(0, threads)
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


@compiled(reorder=True)
def _one(a: int, b: int, count: int, like: Array) -> Any:
    """Return the dot product of two vectors."""
    first, second = carray(_pointer(a), count, like.dtype), carray(_pointer(b), count, like.dtype)
    product = like[0]
    for k in range(count):
        product += first[k] * second[k]
    return product


@compiled(reorder=True)
def _three(a: int, b: int, count: int, like: Array) -> Any:
    """Return the products of two vectors: of the first with itself, with the other, of that with itself."""
    first, second = carray(_pointer(a), count, like.dtype), carray(_pointer(b), count, like.dtype)
    aa, ab, bb = like[0], like[0], like[0]
    for k in range(count):
        x, y = first[k], second[k]
        aa += x * x
        ab += x * y
        bb += y * y
    return aa, ab, bb


@compiled(reorder=True)
def _four(a: int, b: int, c: int, d: int, count: int, like: Array) -> Any:
    """Return the products of two vectors with two others: four for four loads, what a core can do at once."""
    first, second = carray(_pointer(a), count, like.dtype), carray(_pointer(b), count, like.dtype)
    third, fourth = carray(_pointer(c), count, like.dtype), carray(_pointer(d), count, like.dtype)
    ac, ad, bc, bd = like[0], like[0], like[0], like[0]
    for k in range(count):
        x, y, z, w = first[k], second[k], third[k], fourth[k]
        ac += x * z
        ad += x * w
        bc += y * z
        bd += y * w
    return ac, ad, bc, bd


@compiled()
def _add_products(
    rows: Addresses,
    columns: Addresses,
    lengths: Addresses,
    like: Array,
    form: int,
    share: int,
    shares: int,
    found: Array,
) -> None:
    """Add to ``found`` ``[stretches, R, C]`` the products of each stretch of rows with that of columns.

    rows, columns: addresses ``[parameters, R]``, ``[parameters, C]``. lengths: elements ``[parameters]``.
    like: one 0 of the gradients' type. form: `_EVERY` product; where rows are columns, the `_UPPER` triangle,
    or the `_DIAGONAL` alone.
    """
    stretch = 0
    for p in range(len(lengths)):
        for begin in range(0, lengths[p], STRETCH):
            if stretch % shares == share:
                end = min(begin + STRETCH, lengths[p])
                for at in range(begin, end, _BLOCK):
                    offset, size = at * like.itemsize, min(_BLOCK, end - at)
                    if form == _EVERY:
                        _every(rows[p], columns[p], offset, size, like, found[stretch])
                    elif form == _UPPER:
                        _upper(rows[p], offset, size, like, found[stretch])
                    else:
                        _diagonal(rows[p], offset, size, like, found[stretch])
            stretch += 1


@compiled()
def _stretches(lengths: Addresses) -> int:
    total = 0
    for length in lengths:
        total += (length + STRETCH - 1) // STRETCH
    return total


@compiled()
def _add_up(found: Array, same: bool) -> None:
    """Add to the first stretch's products those of the others; same: and fill the lower triangle."""
    total = found[0]
    for stretch in range(1, len(found)):
        total += found[stretch]
    if same:
        for i in range(len(total)):
            for j in range(i):
                total[i, j] = total[j, i]


@compiled()
def _every(rows: Addresses, columns: Addresses, offset: int, size: int, like: Array, total: Array) -> None:
    even, width = len(rows) - len(rows) % 2, len(columns) - len(columns) % 2
    for i in range(0, even, 2):
        a, b = rows[i] + offset, rows[i + 1] + offset
        for j in range(0, width, 2):
            ac, ad, bc, bd = _four(a, b, columns[j] + offset, columns[j + 1] + offset, size, like)
            total[i, j] += ac
            total[i, j + 1] += ad
            total[i + 1, j] += bc
            total[i + 1, j + 1] += bd
    for i in range(len(rows)):
        for j in range(width if i < even else 0, len(columns)):
            total[i, j] += _one(rows[i] + offset, columns[j] + offset, size, like)


@compiled()
def _upper(rows: Addresses, offset: int, size: int, like: Array, total: Array) -> None:
    even = len(rows) - len(rows) % 2
    for i in range(0, even, 2):
        a, b = rows[i] + offset, rows[i + 1] + offset
        aa, ab, bb = _three(a, b, size, like)
        total[i, i] += aa
        total[i, i + 1] += ab
        total[i + 1, i + 1] += bb
        for j in range(i + 2, even, 2):
            ac, ad, bc, bd = _four(a, b, rows[j] + offset, rows[j + 1] + offset, size, like)
            total[i, j] += ac
            total[i, j + 1] += ad
            total[i + 1, j] += bc
            total[i + 1, j + 1] += bd
    for j in range(even, len(rows)):
        for i in range(j + 1):
            total[i, j] += _one(rows[i] + offset, rows[j] + offset, size, like)


@compiled()
def _diagonal(rows: Addresses, offset: int, size: int, like: Array, total: Array) -> None:
    for i in range(len(rows)):
        total[i, i] += _one(rows[i] + offset, rows[i] + offset, size, like)


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
    even = len(rows) - 1 - (len(rows) - 1) % 2
    for t in range(1, 1 + even, 2):
        first = carray(_pointer(rows[t] + offset), size, weights.dtype)
        second = carray(_pointer(rows[t + 1] + offset), size, weights.dtype)
        a, b = weights[t], weights[t + 1]
        for k in range(size):
            total[k] = kept * total[k] + a * first[k] + b * second[k]
        kept = weights.dtype.type(1)
    if even < len(rows) - 1:
        last = carray(_pointer(rows[len(rows) - 1] + offset), size, weights.dtype)
        a = weights[len(rows) - 1]
        for k in range(size):
            total[k] = kept * total[k] + a * last[k]
    elif len(rows) == 1:
        for k in range(size):
            total[k] *= kept
