"""Products and sums of per-task gradients that are kept as lists of tensors, never flattened."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

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


Parameters = Sequence[Sequence[Tensor]]
"""Of each parameter a gradient for each of some tasks."""


class Jacobian:
    """The gradients of T tasks, kept as they are, and what is made of them.

    tasks: a `Gradient` of each, of equal structure. They stay where they are as long as this is asked.
    """

    def __init__(self, tasks: Sequence[Gradient]) -> None:
        self._tasks = tasks
        self._first: list[Tensor | None] = []
        self._rows, rest = kernels.Rows(len(tasks)), []
        for parts in zip(*tasks, strict=True):
            if self._rows.add(parts):
                self._first.append(parts[0])
            else:
                self._first.append(next((part for part in parts if part is not None), None))
                rest.append(parts)
        self._usual = not rest
        self._rest: list[tuple[tuple[int, ...], kernels.Rows, Parameters]] = []
        for reached, parameters in _grouped(rest).items() if rest else ():
            rows = kernels.Rows(len(reached))
            self._rest.append((reached, rows, [parts for parts in parameters if not rows.add(parts)]))

    def gram(self, *, diagonal: bool = False) -> Tensor:
        """Return J Jᵀ, float64 ``[T, T]`` on the CPU.

        Its two triangles are equal, bit for bit. diagonal: whether they may be left 0.
        """
        total = self._rows.products(diagonal=diagonal)
        for reached, rows, others in self._rest:
            block, index = rows.products(diagonal=diagonal), torch.tensor(reached)
            total[index[:, None], index] += block + _products(others) if others else block
        return total

    def products(self, other: Jacobian) -> Tensor:
        """Return J₁ J₂ᵀ, float64 ``[T, S]`` on the CPU; ``other``: J₂, gradients by the same parameters."""
        if self._usual and other._usual and self._rows.fits(other._rows):
            return self._rows.products(other._rows)
        size = len(self._tasks)
        total = torch.zeros(size, len(other._tasks), dtype=torch.float64)
        for reached, parameters in _grouped(zip(*self._tasks, *other._tasks, strict=True)).items():
            left, right = [i for i in reached if i < size], [i - size for i in reached if i >= size]
            if left and right:
                total[torch.tensor(left)[:, None], torch.tensor(right)] += _products(parameters, len(left))
        return total

    def combine(self, weights: Sequence[float]) -> list[Tensor | None]:
        """Return the sum of ``weights[t]`` times gradient t, written over the first gradient there is."""
        self._rows.combine(weights)
        for reached, rows, others in self._rest:
            own = [weights[task] for task in reached]
            rows.combine(own)
            if others:
                totals, *columns = ([*column] for column in zip(*others, strict=True))
                torch._foreach_mul_(totals, own[0])
                for weight, column in zip(own[1:], columns, strict=True):
                    torch._foreach_add_(totals, column, alpha=weight)
        return self._first


def _grouped(parameters: Iterable[Sequence[Tensor | None]]) -> dict[tuple[int, ...], list[list[Tensor]]]:
    """Return the gradients that there are of each parameter, by which tasks reach it."""
    found: dict[tuple[int, ...], list[list[Tensor]]] = defaultdict(list)
    for parts in parameters:
        present = [part for part in parts if part is not None]
        if present and present[0].numel():
            found[tuple(i for i, part in enumerate(parts) if part is not None)].append(present)
    return found


def _products(parameters: Parameters, split: int = 0) -> Tensor:
    """Return the products of the first ``split`` gradients with the others, float64 on the CPU.

    split: 0 for those of all with all: the answer is symmetric, bit for bit.
    """
    parameters = [
        [part.contiguous() for part in parts] if kernels.order_of(parts) is None else parts
        for parts in parameters
    ]
    left, right = ([parts[: split or None] for parts in parameters], [parts[split:] for parts in parameters])
    width = kernels.width_for(max(len(left[0]), len(right[0])))
    rows, columns = kernels.Rows(len(left[0]), width), kernels.Rows(len(right[0]), width)
    if all(map(rows.add, left)) and all(map(columns.add, right)) and rows.fits(columns):
        return rows.products(columns if split else None)
    with torch.no_grad():
        vectors = _joined(left)
        products = _by_torch(vectors, _joined(right) if split else vectors).cpu()
    # Some processors sum the two triangles in different orders, and solvers read both as one.
    return products if split else (products + products.T) / 2


def _joined(rows: Parameters) -> list[list[Tensor]]:
    """Return gradients as vectors; small ones of several parameters make one."""
    vectors = [[torch.as_strided(part, (part.numel(),), (1,)) for part in parts] for parts in rows]
    small = [parts for parts in vectors if len(parts[0]) < SMALL]
    large = [parts for parts in vectors if len(parts[0]) >= SMALL]
    return [*large, *([[torch.cat(column) for column in zip(*small, strict=True)]] if small else [])]


def _by_torch(rows: Parameters, columns: Parameters) -> Tensor:
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
