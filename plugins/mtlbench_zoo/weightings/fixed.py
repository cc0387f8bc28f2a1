"""Fixed weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from mtlbench.contracts import Need, Task, Weighting
from mtlbench.errors import MtlbenchError


class Fixed(Weighting):
    """Fixed weights: a weighted sum of the losses.

    Minimises  sum_t w_t L_t  with the w_t that were asked for, such as ``fixed[weights=[1,2,0.5]]``.

    weights: one finite number >= 0 a task, in the order of the dataset's tasks, not all 0. They are used as
    given, not normalised, so their sum acts on the learning rate. Auxiliary tasks count as tasks.
    Source: linear scalarisation; arXiv:2201.04122 and arXiv:2209.11379 study how far a tuned one goes.
    Heads: weighted, each by its task's weight; a task of weight 0 is not trained at all.
    """

    needs = Need.LOSSES
    properties: ClassVar[frozenset[str]] = frozenset({"scale-free"})

    def __init__(self, tasks: Sequence[Task], weights: list[float]) -> None:
        super().__init__(tasks)
        names = ", ".join(task.name for task in tasks)
        wanted = f"fixed: weights must be one finite number >= 0 for each of the tasks {names}"
        if len(weights) != len(tasks):
            raise MtlbenchError(f"{wanted}: got {len(weights)} for {len(tasks)} tasks: {weights}")
        for task, weight in zip(tasks, weights, strict=True):
            if not (math.isfinite(weight) and weight >= 0):
                raise MtlbenchError(f"{wanted}: got {weight} for {task.name}")
        if not any(weights):
            raise MtlbenchError(f"{wanted}, and not all 0: got {weights}")
        self.weights = list(weights)

    def forward(self, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` of the tasks whose losses ``[T]`` are given."""
        return losses.new_tensor(self.weights)[self.active]
