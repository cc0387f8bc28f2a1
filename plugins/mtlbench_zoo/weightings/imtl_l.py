"""The loss balance of impartial multi-task learning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from mtlbench.contracts import Task
from mtlbench_zoo.weightings._nonnegative import NonnegativeLosses


class IMTLL(NonnegativeLosses):
    """Impartial multi-task learning, loss balance: losses times learned scales.

    Minimises  sum_t exp(s_t) L_t - s_t  over the network and the s_t, which start from 0. At its optimum
    exp(s_t) L_t = 1: every scaled loss is worth 1, whatever its units.

    Source: Liu et al., ICLR 2021 (openreview IMPnRXEWpvr), its loss balance IMTL-L.
    Heads: weighted, as the objective is one scalar. The weights exp(s_t) have no fixed sum.
    Losses: >= 0. One of exactly 0 is left out of the objective, so that its s_t rests, as it does without a
    label; a negative one ends the run with an error.
    Deviations: s_t takes the run's optimiser without weight decay. LibMTL has this objective only together
    with the gradient balance (imtl here).
    """

    properties: ClassVar[frozenset[str]] = frozenset({"permutation-equivariant"})

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.log_scale = nn.Parameter(torch.zeros(len(tasks)))

    def forward(self, losses: Tensor) -> Tensor:
        """Return the objective, a scalar, for the losses ``[T]``."""
        scale = self.log_scale if len(losses) == len(self.log_scale) else self.log_scale[self.active]
        (values,) = self.recall(losses)
        terms = scale.exp() * losses - scale
        return terms.sum() if all(value > 0 for value in values) else terms.where(losses > 0, 0).sum()
