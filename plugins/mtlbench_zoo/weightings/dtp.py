"""Dynamic task prioritisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mtlbench.contracts import Task
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.weightings._nonnegative import NonnegativeLosses, like


class DTP(NonnegativeLosses):
    """Dynamic task prioritisation: more weight for the tasks that are still hard.

    Minimises  sum_t w_t L_t  with the focal weight  w_t = -(1 - k_t)^gamma log k_t  of a key performance
    indicator k_t in (0, 1], a running mean:  k_t <- (1 - alpha) k_t + alpha k'_t  at every step.

    The paper's indicator is a metric such as accuracy. A weighting sees losses only, so it is here

        k'_t = exp(-L_t / F_t),  F_t the first loss above 0 that the task had.

    That is 1 for a solved task and 1/e at the start, whatever the units. For a cross-entropy exp(-L) is the
    geometric mean of the probabilities given to the right classes, what focal loss calls p_t; dividing by
    the first loss puts a classification among any number of classes, and a regression, on the same footing.
    It is our choice, so results do not stand for the paper's.

    gamma: >= 0, how much easy tasks are played down. The default 2 is that of focal loss (arXiv:1708.02002).
    alpha: 0 < alpha <= 1, how fast the running mean forgets; the default is ours.
    Source: Guo, Haque, Huang, Yeung & Fei-Fei, ECCV 2018; weights and running mean checked against the public
    accounts of it only, and its values of gamma and alpha could not be verified. There is no official code.
    Heads: weighted. The weights have no fixed sum, and stay the same when all losses are scaled alike.
    Losses: >= 0. One of 0 is a solved task, which gets weight 0 if it is so from the start; a negative one
    ends the run with an error.
    Deviations: the indicator. The paper also weights samples by a focal loss of their own and orders tasks
    in the network; that is a matter of losses and architectures. 1 - k is what is stored, which keeps its
    digits near a solved task; k is not let below 2^-53, so that no weight is above 37.
    """

    properties: ClassVar[frozenset[str]] = frozenset({"permutation-equivariant", "scale-free"})

    first: Tensor
    shortfall: Tensor

    def __init__(self, tasks: Sequence[Task], gamma: float = 2.0, alpha: float = 0.1) -> None:
        super().__init__(tasks)
        if not 0 <= gamma < math.inf:
            raise MtlbenchError(f"dtp: gamma must be a finite number >= 0, got {gamma}")
        if not 0 < alpha <= 1:
            raise MtlbenchError(f"dtp: alpha must be a number above 0 and up to 1, got {alpha}")
        self.gamma, self.alpha = gamma, alpha
        self.buffer("first")
        self.buffer("shortfall", torch.nan)

    def forward(self, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the losses ``[T]``, which enter the indicators before that."""
        states = [self.first, self.shortfall]
        values, *rows = self.recall(losses, *states)
        first, shortfall = rows
        weights = []
        for i, value in zip(self.places, values, strict=True):
            first[i] = first[i] if first[i] > 0 else value
            now = -math.expm1(-value / first[i]) if first[i] > 0 else 0.0
            past = shortfall[i]
            shortfall[i] = now if math.isnan(past) else past + self.alpha * (now - past)
            bounded = min(shortfall[i], 1 - 2.0**-53)
            weights.append(-(bounded**self.gamma) * math.log1p(-bounded))
        self.keep(states, rows)
        return like(weights, losses)
