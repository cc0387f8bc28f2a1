"""Group optimisation for multi-task alignment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mtlbench.contracts import Task
from mtlbench.errors import MtlbenchError
from mtlbench.solvers.kmeans import kmeans_1d
from mtlbench_zoo.weightings._nonnegative import NonnegativeLosses, inverse, like


class GO4Align(NonnegativeLosses):
    """Group optimisation: tasks whose risks run alike form a group and share one weight.

    At every step each task has a share of risk,  p_t <- p_t exp(-eta L_t),  the p_t summing to 1, and an
    indicator  v_t = p_t sum_r L_r / L_t.  The v_t are clustered by k-means, and it minimises  sum_t w_t L_t
    with w_t the mean indicator of the task's group.

    groups: how many, >= 1; with T groups or more each task is its own. The official code asks for a number
    and has no default; 2 is ours.
    step_size: eta >= 0, per unit of loss. The official code's is 0.0001, so the shares move only over
    thousands of steps; they are the one part that depends on the losses' units.
    Source: Shen, Wang, Xiao, van Noord & Worring, NeurIPS 2024, arXiv:2404.06486; the formulas are those of
    the official code, and were not checked against the paper's text.
    Heads: weighted. The weights have no fixed sum; for equal shares of equal losses they are 1.
    Losses: >= 0. One of exactly 0 gets weight 0 and joins no group; a negative one ends the run with an
    error.
    Deviations: k-means on numbers is solved exactly, so there are no random starts. Shares are kept as
    logarithms, which large losses do not turn into 0/0. Tasks without a label in the batch keep their share.
    """

    properties: ClassVar[frozenset[str]] = frozenset({"permutation-equivariant"})

    log_share: Tensor

    def __init__(self, tasks: Sequence[Task], groups: int = 2, step_size: float = 1e-4) -> None:
        super().__init__(tasks)
        if groups < 1:
            raise MtlbenchError(f"go4align: groups must be a number >= 1, got {groups}")
        if not 0 <= step_size < math.inf:
            raise MtlbenchError(f"go4align: step_size must be a finite number >= 0, got {step_size}")
        self.groups, self.step_size = groups, step_size
        self.buffer("log_share", -math.log(max(len(tasks), 1)))

    def forward(self, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the losses ``[T]``, which enter the shares before that."""
        values, past = self.read(losses), self.log_share[self.active]
        shares = (past - self.step_size * values).log_softmax(0)
        # Together they keep what they had, so that a task without labels neither gains nor loses.
        self.log_share[self.active] = shares + past.logsumexp(0)
        indicators = (shares.exp() * values.sum() * inverse(values)).numpy(force=True)
        weights = np.zeros_like(indicators)
        member = values.numpy(force=True) > 0
        member &= np.isfinite(indicators)  # a loss of inf; the training loop will tell
        if member.any():
            group = kmeans_1d(indicators[member], self.groups)
            means = np.bincount(group, indicators[member]) / np.bincount(group)
            weights[member] = means[group]
        return like(torch.from_numpy(weights).to(values), losses)
