"""Products and sums of per-task gradients that are kept as lists of tensors, never flattened."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mtlbench.gradients.precision import at_least_float32

Gradient = Sequence[Tensor | None]
"""One task's gradient, a tensor for each parameter; None where the task does not reach it."""

CHUNK = 1 << 15
"""Elements that one dot product sums in float32 before the sum goes on in float64. Of ten million random
elements it is then off by 2e-8, relative to the longest gradient; chunks of a few tasks stay in the cache."""

PIECE = 1 << 13
"""Elements that a product of matrices sums in float32, less exactly than a dot product does: of two million
random elements it is then off by 2e-8."""

SMALL = 1 << 12
"""Elements below which gradients of several parameters are joined: the calls cost more than the copies."""

FEW = 105
"""Dot products up to which they are faster than the product of stacked gradients: those of 14 tasks."""

WIDE = 1 << 20
"""Elements of each gradient that are stacked at a time where NumPy does not go, as on a GPU."""

Array = NDArray[Any]


def gram(jacobian: Sequence[Gradient], *, diagonal: bool = False) -> Tensor:
    """Return J Jᵀ, float64 ``[T, T]`` on the CPU, for T gradients of equal structure.

    Its two triangles are equal, bit for bit. diagonal: whether they may be left 0.
    """
    size = len(jacobian)
    total: Tensor | None = None
    for reached, rows in _joined(jacobian):
        block = _products(rows, rows, diagonal)
        if total is None:
            total = torch.zeros(size, size, dtype=torch.float64, device=block.device)
        if len(reached) == size:
            total += block
        else:
            index = torch.tensor(reached, device=block.device)
            total[index[:, None], index] += block
    return torch.zeros(size, size, dtype=torch.float64) if total is None else total.cpu()


def cross_gram(first: Sequence[Gradient], second: Sequence[Gradient]) -> Tensor:
    """Return J₁ J₂ᵀ, float64 ``[T, T]`` on the CPU, for twice T gradients of equal structure."""
    size = len(first)
    total: Tensor | None = None
    for reached, vectors in _joined([*first, *second]):
        rows, columns = [i for i in reached if i < size], [i - size for i in reached if i >= size]
        if not rows or not columns:
            continue
        block = _products(vectors[: len(rows)], vectors[len(rows) :])
        if total is None:
            total = torch.zeros(size, size, dtype=torch.float64, device=block.device)
        total[
            torch.tensor(rows, device=block.device)[:, None], torch.tensor(columns, device=block.device)
        ] += block
    return torch.zeros(size, size, dtype=torch.float64) if total is None else total.cpu()


def _joined(jacobian: Sequence[Gradient]) -> Iterator[tuple[tuple[int, ...], list[Tensor]]]:
    """Yield which tasks reach a parameter and their gradients of it as vectors; small ones are joined."""
    waiting: dict[tuple[int, ...], list[list[Tensor]]] = defaultdict(list)
    for parts in zip(*jacobian, strict=True):
        reached = tuple(i for i, part in enumerate(parts) if part is not None and part.numel())
        if not reached:
            continue
        rows = _flat([part for part in parts if part is not None])
        if rows[0].numel() >= SMALL:
            yield reached, rows
            continue
        group = waiting[reached]
        group.append(rows)
        if len(group) == CHUNK // SMALL:
            yield reached, [torch.cat(column) for column in zip(*group, strict=True)]
            group.clear()
    for reached, group in waiting.items():
        if group:
            yield reached, [torch.cat(column) for column in zip(*group, strict=True)]


def _flat(parts: Sequence[Tensor]) -> list[Tensor]:
    """Return gradients of one parameter as vectors, in the order of memory where all share a layout."""
    if parts[0].dim() == 4 and all(part.is_contiguous(memory_format=torch.channels_last) for part in parts):
        parts = [part.permute(0, 2, 3, 1) for part in parts]  # a view: reshape then copies nothing
    return [part.detach().reshape(-1) for part in parts]


def _products(rows: Sequence[Tensor], columns: Sequence[Tensor], diagonal: bool = False) -> Tensor:
    """Return the products of equally long vectors, float64 ``[rows, columns]`` on their device.

    columns: the rows themselves make it symmetric, bit for bit. diagonal: whether the rest may be left 0.
    """
    same = columns is rows
    known = (torch.float32, torch.float64)
    if all(vector.device.type == "cpu" and vector.dtype in known for vector in (*rows, *columns)):
        # NumPy's BLAS multiplies vectors faster than torch's, and forms half of a symmetric product.
        left = [row.numpy() for row in rows]
        right = left if same else [column.numpy() for column in columns]
        pairs = len(rows) * (len(rows) + 1) // 2 if same else len(rows) * len(columns)
        few = diagonal or pairs <= FEW
        products = torch.from_numpy(_by_pairs(left, right, diagonal) if few else _by_matrices(left, right))
    else:
        products = _by_torch(rows, columns)
    # Some processors sum the two triangles in different orders, and solvers read both as one.
    return (products + products.T) / 2 if same else products


def _by_pairs(rows: Sequence[Array], columns: Sequence[Array], diagonal: bool) -> Array:
    same = columns is rows
    products = [[0.0] * len(columns) for _ in rows]
    for at in range(0, len(rows[0]), CHUNK):
        left = [row[at : at + CHUNK] for row in rows]
        right = left if same else [column[at : at + CHUNK] for column in columns]
        for i, (part, line) in enumerate(zip(left, products, strict=True)):
            for j in range(i if same else 0, i + 1 if diagonal else len(right)):
                line[j] += float(part.dot(right[j]))
    for i in range(len(rows) if same else 0):
        for j in range(i):
            products[i][j] = products[j][i]
    return np.array(products)


def _by_matrices(rows: Sequence[Array], columns: Sequence[Array]) -> Array:
    products = np.zeros((len(rows), len(columns)))
    for at in range(0, len(rows[0]), PIECE):
        left = np.stack([row[at : at + PIECE] for row in rows])
        right = left if columns is rows else np.stack([column[at : at + PIECE] for column in columns])
        products += left.dot(right.T)
    return products


def _by_torch(rows: Sequence[Tensor], columns: Sequence[Tensor]) -> Tensor:
    products = torch.zeros(len(rows), len(columns), dtype=torch.float64, device=rows[0].device)
    for at in range(0, rows[0].numel(), WIDE):
        left = _cut(rows, at)
        right = left if columns is rows else _cut(columns, at)
        products += torch.bmm(left, right.transpose(1, 2)).double().sum(0)
    return products


def _cut(rows: Sequence[Tensor], at: int) -> Tensor:
    """Return what of the vectors begins at ``at``, in pieces, ``[pieces, rows, PIECE]``."""
    stacked = at_least_float32(torch.stack([row[at : at + WIDE] for row in rows]))
    padded = functional.pad(stacked, (0, -stacked.shape[1] % PIECE))
    return padded.view(len(rows), -1, PIECE).transpose(0, 1)


def combine(jacobian: Sequence[Gradient], weights: Sequence[float]) -> list[Tensor | None]:
    """Return the sum of ``weights[t] * jacobian[t]``, written over the first gradient there is."""
    combined: list[Tensor | None] = []
    groups: dict[tuple[int, ...], list[list[Tensor]]] = defaultdict(list)
    for parts in zip(*jacobian, strict=True):
        reached = tuple(i for i, part in enumerate(parts) if part is not None)
        present = [part for part in parts if part is not None]
        combined.append(present[0] if present else None)
        if not present:
            continue
        if present[0].numel() < CHUNK:
            groups[reached].append(present)
        else:
            _combine([[part] for part in present], [weights[i] for i in reached])
    for reached, group in groups.items():  # many small ones: one call for each task
        _combine([[*column] for column in zip(*group, strict=True)], [weights[i] for i in reached])
    return combined


def _combine(columns: Sequence[list[Tensor]], weights: Sequence[float]) -> None:
    torch._foreach_mul_(columns[0], weights[0])
    for column, weight in zip(columns[1:], weights[1:], strict=True):
        torch._foreach_add_(columns[0], column, alpha=weight)
