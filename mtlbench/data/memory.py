"""Samples that are held in memory."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mtlbench.contracts import Batch, Split


class MemorySplit(Split):
    """Inputs ``[N, ...]`` and the targets of each task ``[N, ...]``, as a `Batch` holds them."""

    def __init__(self, inputs: Tensor, targets: Mapping[str, Tensor]) -> None:
        self._inputs, self._targets = inputs, dict(targets)

    def __len__(self) -> int:
        return len(self._inputs)

    def fetch(self, indices: Tensor) -> Batch:
        """Return the samples at ``indices``, in that order."""
        return Batch(self._inputs[indices], {task: target[indices] for task, target in self._targets.items()})
