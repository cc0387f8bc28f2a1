"""How the tasks' gradients stand to each other, summed up over an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

DIGITS = 4
"""Decimals of a cosine and of a rate, and significant digits of a norm, that a record keeps."""


def add(sums: Tensor | None, gram: Tensor) -> Tensor:
    """Return ``sums`` (None: none yet) with one step's Gram matrix added.

    gram: float64 ``[T, T]``, NaN for a task that was absent. The sums are float64 ``[4, T, T]``: of the
    cosines, of the conflicts (a negative cosine), of the steps in which both gradients were there and not
    zero (only these count), and on the diagonal of the last of the norms.
    """
    norms = gram.diagonal().clamp(min=0).sqrt()
    cosines = gram / norms.outer(norms)
    known = cosines.isfinite()
    step = torch.stack(
        [
            torch.where(known, cosines, 0),
            (known & (gram < 0)).double(),
            known.double(),
            norms.nan_to_num(nan=0).diag(),
        ]
    )
    return step if sums is None else sums + step


def summary(sums: Tensor | None, names: Sequence[str]) -> dict[str, Any] | None:
    """Return what a record keeps of an epoch's sums; None where there are none.

    ``steps``: in how many steps each task had a gradient that is not zero. ``norm``: the mean length of a
    task's gradient over these. ``cosine``, ``conflict``: by two tasks, in the order of ``names``, the mean
    cosine and the share of steps with a negative one; None for a pair that never met.
    """
    if sums is None:
        return None
    cosines, conflicts, counts, norms = sums.tolist()
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]

    def share(total: float, count: float) -> float | None:
        return round(total / count, DIGITS) if count else None

    def by_pair(totals: list[list[float]]) -> dict[str, dict[str, float | None]]:
        found: dict[str, dict[str, float | None]] = {}
        for i, j in pairs:
            found.setdefault(names[i], {})[names[j]] = share(totals[i][j], counts[i][j])
        return found

    return {
        "steps": {name: int(counts[i][i]) for i, name in enumerate(names)},
        "norm": {
            name: float(f"{norms[i][i] / counts[i][i]:.{DIGITS}g}") if counts[i][i] else None
            for i, name in enumerate(names)
        },
        "cosine": by_pair(cosines),
        "conflict": by_pair(conflicts),
    }
