"""Products and sums of per-task gradients that are kept as lists of tensors, never flattened."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Gradient = Sequence[Tensor | None]
"""One task's gradient, a tensor for each parameter; None where the task does not reach it."""

CHUNK = 1 << 17
"""Elements that are multiplied in float32 before the sum goes on in float64 (a plain float32 product of
ten million elements is off by 1e-4; chunks of this size stay in the cache and are off by 1e-8)."""


def gram(jacobian: Sequence[Gradient]) -> Tensor:
    """Return J Jᵀ, float64 ``[T, T]`` on the CPU, for T gradients of equal structure."""
    size = len(jacobian)
    total: Tensor | None = None
    for parts in zip(*jacobian, strict=True):
        reached = [i for i, part in enumerate(parts) if part is not None]
        if not reached:
            continue
        rows = _flat([part for part in parts if part is not None])
        block = _products(rows)
        if total is None:
            total = torch.zeros(size, size, dtype=torch.float64, device=block.device)
        if len(reached) == size:
            total += block
        else:
            index = torch.tensor(reached, device=block.device)
            total[index[:, None], index] += block
    return torch.zeros(size, size, dtype=torch.float64) if total is None else total.cpu()


def _flat(parts: Sequence[Tensor]) -> list[Tensor]:
    """Return gradients of one parameter as vectors, in the order of memory where all share a layout."""
    if parts[0].dim() == 4 and all(part.is_contiguous(memory_format=torch.channels_last) for part in parts):
        parts = [part.permute(0, 2, 3, 1) for part in parts]  # a view: reshape then copies nothing
    return [part.detach().reshape(-1) for part in parts]


def _products(rows: Sequence[Tensor]) -> Tensor:
    """Return the products of equally long vectors, float64 ``[T, T]`` on their device."""
    block = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows[0].device)
    for start in range(0, rows[0].numel(), CHUNK):
        chunk = torch.stack([row[start : start + CHUNK] for row in rows])
        block += chunk @ chunk.T
    return block


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
