"""Products and sums of per-task gradients that are kept as lists of tensors, never flattened."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
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
    for reached, vectors in _vectors(jacobian).items():
        block = _products(vectors, vectors, diagonal)
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
    for reached, vectors in _vectors([*first, *second]).items():
        rows, columns = [i for i in reached if i < size], [i - size for i in reached if i >= size]
        if not rows or not columns:
            continue
        left, right = [v[: len(rows)] for v in vectors], [v[len(rows) :] for v in vectors]
        block = _products(left, right)
        if total is None:
            total = torch.zeros(size, size, dtype=torch.float64, device=block.device)
        total[
            torch.tensor(rows, device=block.device)[:, None], torch.tensor(columns, device=block.device)
        ] += block
    return torch.zeros(size, size, dtype=torch.float64) if total is None else total.cpu()


def _vectors(jacobian: Sequence[Gradient]) -> dict[tuple[int, ...], list[list[Tensor]]]:
    """Return the gradients of each parameter as vectors, by which tasks reach it; small ones are joined."""
    found: dict[tuple[int, ...], list[list[Tensor]]] = defaultdict(list)
    small: dict[tuple[int, ...], list[list[Tensor]]] = defaultdict(list)
    for parts in zip(*jacobian, strict=True):
        present = [part for part in parts if part is not None]
        if not present or not present[0].numel():
            continue
        reached = tuple(i for i, part in enumerate(parts) if part is not None)
        (small if present[0].numel() < SMALL else found)[reached].append(_flat(present))
    for reached, group in small.items():
        found[reached].append([torch.cat(column) for column in zip(*group, strict=True)])
    return found


def _flat(parts: Sequence[Tensor]) -> list[Tensor]:
    """Return gradients of one parameter as vectors, in the order of memory where all share a layout."""
    if parts[0].dim() == 4 and all(part.is_contiguous(memory_format=torch.channels_last) for part in parts):
        parts = [part.permute(0, 2, 3, 1) for part in parts]  # a view: reshape then copies nothing
    return [part.detach().reshape(-1) for part in parts]


_Vectors = Sequence[Sequence[Tensor]]
_Arrays = Sequence[Sequence[Array]]


def _products(rows: _Vectors, columns: _Vectors, diagonal: bool = False) -> Tensor:
    """Return the products of each task's row with each column, float64 ``[rows, columns]`` on their device.

    rows: of each parameter, equally long vectors. columns: the rows themselves make the answer symmetric, bit
    for bit. diagonal: whether the rest may be left 0.
    """
    same, known = columns is rows, (torch.float32, torch.float64)
    some = [vectors[0] for vectors in (*rows, *columns)]
    if all(vector.device.type == "cpu" and vector.dtype in known for vector in some):
        # NumPy's BLAS multiplies vectors faster than torch's, and forms half of a symmetric product.
        left = [[row.numpy() for row in vectors] for vectors in rows]
        right = left if same else [[column.numpy() for column in vectors] for vectors in columns]
        first, second = len(rows[0]), len(columns[0])
        if diagonal or (first * (first + 1) // 2 if same else first * second) <= FEW:
            return _by_pairs(left, right, diagonal)
        products = _by_matrices(left, right)
    else:
        products = _by_torch(rows, columns)
    # Some processors sum the two triangles in different orders, and solvers read both as one.
    return (products + products.T) / 2 if same else products


def _by_pairs(rows: _Arrays, columns: _Arrays, diagonal: bool) -> Tensor:
    same = columns is rows
    products = [[0.0] * len(columns[0]) for _ in rows[0]]
    for vectors, others in zip(rows, columns, strict=True):
        for at in range(0, len(vectors[0]), CHUNK):
            left = [row[at : at + CHUNK] for row in vectors]
            right = left if same else [column[at : at + CHUNK] for column in others]
            for i, (part, line) in enumerate(zip(left, products, strict=True)):
                for j in range(i if same else 0, i + 1 if diagonal else len(right)):
                    line[j] += float(part.dot(right[j]))
    for i in range(len(products) if same else 0):
        for j in range(i):
            products[i][j] = products[j][i]
    return torch.tensor(products, dtype=torch.float64)


def _by_matrices(rows: _Arrays, columns: _Arrays) -> Tensor:
    products = np.zeros((len(rows[0]), len(columns[0])))
    for vectors, others in zip(rows, columns, strict=True):
        for at in range(0, len(vectors[0]), PIECE):
            left = np.stack([row[at : at + PIECE] for row in vectors])
            right = left if columns is rows else np.stack([column[at : at + PIECE] for column in others])
            products += left.dot(right.T)
    return torch.from_numpy(products)


def _by_torch(rows: _Vectors, columns: _Vectors) -> Tensor:
    size = len(rows[0]), len(columns[0])
    products = torch.zeros(size, dtype=torch.float64, device=rows[0][0].device)
    for vectors, others in zip(rows, columns, strict=True):
        for at in range(0, len(vectors[0]), WIDE):
            left = _cut(vectors, at)
            right = left if columns is rows else _cut(others, at)
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
        reached = [i for i, part in enumerate(parts) if part is not None]
        present = [part for part in parts if part is not None]
        combined.append(present[0] if present else None)
        if present and present[0].numel() < CHUNK:
            groups[tuple(reached)].append(present)
        elif present:
            present[0].mul_(weights[reached[0]])
            for task, part in zip(reached[1:], present[1:], strict=True):
                present[0].add_(part, alpha=weights[task])
    for group_reached, group in groups.items():  # many small ones: one call for each task
        totals, *others = ([*column] for column in zip(*group, strict=True))
        torch._foreach_mul_(totals, weights[group_reached[0]])
        for task, column in zip(group_reached[1:], others, strict=True):
            torch._foreach_add_(totals, column, alpha=weights[task])
    return combined
