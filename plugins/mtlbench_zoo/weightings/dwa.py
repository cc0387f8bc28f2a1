"""Dynamic weight average."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from mtlbench.contracts import Task
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.weightings._nonnegative import NonnegativeLosses, RecentMeans, like, softmax


class DWA(NonnegativeLosses):
    """Dynamic weight average: more weight for the tasks whose losses fall more slowly.

    Minimises  sum_t w_t L_t  with  w_t = K softmax_t(r_t / T),  K tasks and r_t the mean loss of the last
    epoch over that of the epoch before it. In the first two epochs the weights are 1.

    temperature: T > 0; the larger, the nearer the weights are to 1. The paper's is 2.
    window: None for means over epochs, as in the paper; a number n for means over the last n steps and the n
    before them, new at every step, with weights 1 until there are 2 n. Nash-MTL's comparisons use 25.
    Source: Liu, Johns & Davison, CVPR 2019, arXiv:1803.10704.
    Heads: weighted. The weights sum to K, the number of tasks with a label in the batch.
    Losses: >= 0. r_t = 1 where the earlier mean is 0 or a mean is not known (a task without labels); a
    negative loss ends the run with an error.
    Deviations: Nash-MTL's code fills the windows with ones at first and takes the mean of the weighted
    losses, so that its weights in effect sum to 1.
    """

    properties: ClassVar[frozenset[str]] = frozenset({"permutation-equivariant", "scale-free"})

    def __init__(self, tasks: Sequence[Task], temperature: float = 2.0, window: int | None = None) -> None:
        super().__init__(tasks)
        if not 0 < temperature < math.inf:
            raise MtlbenchError(f"dwa: temperature must be a finite number > 0, got {temperature}")
        self.temperature = temperature
        self.recent = RecentMeans("dwa", len(tasks), window)

    def forward(self, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the losses ``[T]``."""
        self.recent.step(losses, self.active)
        values, (earlier, later) = self.recall(losses, self.recent())
        rates = [later[i] / earlier[i] if earlier[i] > 0 else 1.0 for i in self.places]
        largest = sys.float_info.max
        shares = softmax([min(1.0 if math.isnan(r) else r, largest) / self.temperature for r in rates])
        return like([len(values) * share for share in shares], losses)

    def after_epoch(self, losses: Tensor) -> None:
        """Take the epoch's mean losses ``[T]``."""
        self.recent.epoch(losses)
