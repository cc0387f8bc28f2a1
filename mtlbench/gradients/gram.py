"""Products and sums of per-task gradients that are kept as lists of tensors, never flattened."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mtlbench.gradients import kernels
from mtlbench.gradients.precision import at_least_float32

Gradient = Sequence[Tensor | None]
"""One task's gradient, a tensor for each parameter; None where the task does not reach it."""

PIECE = 1 << 13
"""Elements that torch's product of matrices sums in float32: of two million random elements it is then off by
2e-8."""

SMALL = 1 << 12
"""Elements below which gradients of several parameters are joined for torch: calls cost more than copies."""

WIDE = 1 << 20
"""Elements of each gradient that are stacked for torch at a time."""


def gram(jacobian: Sequence[Gradient], *, diagonal: bool = False) -> Tensor:
    """Return J Jᵀ, float64 ``[T, T]`` on the CPU, for T gradients of equal structure.

    Its two triangles are equal, bit for bit. diagonal: whether they may be left 0.
    """
    size = len(jacobian)
    total: Tensor | None = None
    for reached, rows in (groups := _grouped(jacobian)).items():
        block = _products(rows, rows, diagonal)
        if len(groups) == 1 and len(reached) == size:
            return block.cpu()
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
    for reached, parameters in _grouped([*first, *second]).items():
        rows, columns = [i for i in reached if i < size], [i - size for i in reached if i >= size]
        if not rows or not columns:
            continue
        block = _products([p[: len(rows)] for p in parameters], [p[len(rows) :] for p in parameters])
        if total is None:
            total = torch.zeros(size, size, dtype=torch.float64, device=block.device)
        total[
            torch.tensor(rows, device=block.device)[:, None], torch.tensor(columns, device=block.device)
        ] += block
    return torch.zeros(size, size, dtype=torch.float64) if total is None else total.cpu()


def _grouped(jacobian: Sequence[Gradient]) -> dict[tuple[int, ...], list[list[Tensor]]]:
    """Return the gradients of each parameter, those of all tasks alike in memory, by which tasks reach it."""
    found: dict[tuple[int, ...], list[list[Tensor]]] = defaultdict(list)
    for parts in zip(*jacobian, strict=True):
        present = [part for part in parts if part is not None]
        if present and present[0].numel():
            reached = tuple(i for i, part in enumerate(parts) if part is not None)
            found[reached].append(present if _alike(present) else [part.contiguous() for part in present])
    return found


def _alike(parts: Sequence[Tensor]) -> bool:
    """Say whether gradients of one parameter have their elements in one order of memory, without gaps."""
    return (
        all(part.is_contiguous() for part in parts)
        or all(part.dim() == 4 and part.is_contiguous(memory_format=torch.channels_last) for part in parts)
        or all(part.dim() == 2 and part.t().is_contiguous() for part in parts)
    )


def _products(rows: kernels.Rows, columns: kernels.Rows, diagonal: bool = False) -> Tensor:
    """Return the products of each task's row with each column, float64 ``[rows, columns]`` on their device.

    rows: of each parameter, equally long gradients. columns: the rows themselves make the answer symmetric,
    bit for bit. diagonal: whether the rest may be left 0.
    """
    same = columns is rows
    if kernels.suits(rows) and (same or kernels.suits(columns)):
        return torch.from_numpy(kernels.products(rows, columns, diagonal=diagonal))
    with torch.no_grad():
        left = _joined(rows)
        products = _by_torch(left, left if same else _joined(columns))
    # Some processors sum the two triangles in different orders, and solvers read both as one.
    return (products + products.T) / 2 if same else products


def _joined(rows: kernels.Rows) -> list[list[Tensor]]:
    """Return gradients as vectors; small ones of several parameters make one."""
    vectors = [[torch.as_strided(part, (part.numel(),), (1,)) for part in parts] for parts in rows]
    small = [parts for parts in vectors if len(parts[0]) < SMALL]
    large = [parts for parts in vectors if len(parts[0]) >= SMALL]
    return [*large, *([[torch.cat(column) for column in zip(*small, strict=True)]] if small else [])]


def _by_torch(rows: kernels.Rows, columns: kernels.Rows) -> Tensor:
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
        present = [part for part in parts if part is not None]
        combined.append(present[0] if present else None)
        if present:
            groups[tuple(i for i, part in enumerate(parts) if part is not None)].append(present)
    for reached, rows in groups.items():
        own = [weights[task] for task in reached]
        if kernels.suits(rows) and all(map(_alike, rows)):
            kernels.combine(rows, own)
            continue
        totals, *others = ([*column] for column in zip(*rows, strict=True))
        torch._foreach_mul_(totals, own[0])
        for weight, column in zip(own[1:], others, strict=True):
            torch._foreach_add_(totals, column, alpha=weight)
    return combined
