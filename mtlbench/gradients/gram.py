"""Products and sums of per-task gradients that are kept as lists of tensors, never flattened."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Gradient = Sequence[Tensor | None]
"""One task's gradient, a tensor for each parameter; None where the task does not reach it."""

CHUNK = 1 << 17
"""Elements that one dot product sums in float32 before the sum goes on in float64. Of eleven million random
elements it is then off by 1e-7, relative to the longest gradient; a chunk also stays in the cache."""

PIECE = 1 << 12
"""Elements that a product of stacked gradients sums in float32: one after another, unlike a dot product, so
fewer; it is then off by 3e-8 (by 3e-6 if it sums a whole chunk)."""

SMALL = 1 << 14
"""Elements below which gradients of several parameters are joined: the calls cost more than the copies."""

FEW = 4
"""Tasks up to which T (T + 1) / 2 dot products are faster than one product of the stacked gradients."""


def gram(jacobian: Sequence[Gradient]) -> Tensor:
    """Return J Jᵀ, float64 ``[T, T]`` on the CPU, for T gradients of equal structure."""
    size = len(jacobian)
    total: Tensor | None = None
    for reached, rows in _joined(jacobian):
        block = _products(rows)
        if total is None:
            total = torch.zeros(size, size, dtype=torch.float64, device=block.device)
        if len(reached) == size:
            total += block
        else:
            index = torch.tensor(reached, device=block.device)
            total[index[:, None], index] += block
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


def _products(rows: Sequence[Tensor]) -> Tensor:
    """Return the products of equally long vectors, float64 ``[T, T]`` on their device."""
    size, length = len(rows), rows[0].numel()
    if size <= FEW:  # each pair by itself: nothing is copied
        pairs = [(i, j) for i in range(size) for j in range(i, size)]
        sums = [
            torch.stack([torch.dot(rows[i][at : at + CHUNK], rows[j][at : at + CHUNK]) for i, j in pairs])
            for at in range(0, length, CHUNK)
        ]
        upper = torch.stack(sums).double().sum(0)
        block = upper.new_zeros(size, size)
        first, second = torch.tensor(pairs, device=block.device).T
        block[first, second] = upper
        block[second, first] = upper
        return block
    block = torch.zeros(size, size, dtype=torch.float64, device=rows[0].device)
    width = min(CHUNK, -(-length // PIECE) * PIECE)
    buffer = rows[0].new_zeros(size, width)
    for at in range(0, length, CHUNK):
        filled = min(CHUNK, length - at)
        for row, place in zip(rows, buffer, strict=True):
            place[:filled].copy_(row[at : at + filled])
        buffer[:, filled:] = 0
        pieces = buffer.view(size, -1, PIECE).transpose(0, 1)
        block += torch.bmm(pieces, pieces.transpose(1, 2)).double().sum(0)
    # Some processors sum the two triangles in different orders, and solvers read both as one.
    return (block + block.T) / 2


def cross_gram(first: Sequence[Gradient], second: Sequence[Gradient]) -> Tensor:
    """Return J₁ J₂ᵀ, float64 ``[T, T]`` on the CPU, for twice T gradients of equal structure."""
    size = len(first)
    total: Tensor | None = None
    for parts in zip(*first, *second, strict=True):
        rows = [i for i, part in enumerate(parts[:size]) if part is not None]
        columns = [i for i, part in enumerate(parts[size:]) if part is not None]
        if not rows or not columns:
            continue
        vectors = _flat([part for part in parts if part is not None])
        block = _cross_products(vectors[: len(rows)], vectors[len(rows) :])
        if total is None:
            total = torch.zeros(size, size, dtype=torch.float64, device=block.device)
        total[
            torch.tensor(rows, device=block.device)[:, None], torch.tensor(columns, device=block.device)
        ] += block
    return torch.zeros(size, size, dtype=torch.float64) if total is None else total.cpu()


def _cross_products(rows: Sequence[Tensor], columns: Sequence[Tensor]) -> Tensor:
    """Return the products of each row with each column, float64 ``[len(rows), len(columns)]``."""
    sums = [
        torch.stack(
            [torch.dot(row[at : at + CHUNK], column[at : at + CHUNK]) for row in rows for column in columns]
        )
        for at in range(0, rows[0].numel(), CHUNK)
    ]
    return torch.stack(sums).double().sum(0).view(len(rows), len(columns))


def combine(jacobian: Sequence[Gradient], weights: Sequence[float]) -> list[Tensor | None]:
    """Return the sum of ``weights[t] * jacobian[t]``, written over the first gradient there is."""
    combined: list[Tensor | None] = []
    for parts in zip(*jacobian, strict=True):
        total: Tensor | None = None
        for weight, part in zip(weights, parts, strict=True):
            if part is None:
                continue
            total = part.mul_(weight) if total is None else total.add_(part, alpha=weight)
        combined.append(total)
    return combined
