"""Group optimisation for multi-task alignment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

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
        values, log_share = self.recall(losses, self.log_share)
        places = self.places
        past = [log_share[i] for i in places]
        moved = [share - self.step_size * value for share, value in zip(past, values, strict=True)]
        # Together they keep what they had, so that a task without labels neither gains nor loses.
        had, have = _log_sum_exp(past), _log_sum_exp(moved)
        for i, share in zip(places, moved, strict=True):
            log_share[i] = share - have + had
        self.keep([self.log_share], [log_share])
        risk = sum(values)
        indicators = [
            math.exp(share - have) * risk * inverse(value) for share, value in zip(moved, values, strict=True)
        ]
        weights = [0.0] * len(values)
        # A loss may be infinite; the training loop will tell.
        members = [i for i, value in enumerate(values) if value > 0 and math.isfinite(indicators[i])]
        if members:
            group = kmeans_1d([indicators[i] for i in members], self.groups)
            totals, sizes = [0.0] * len(members), [0] * len(members)
            for i, label in zip(members, group, strict=True):
                totals[label] += indicators[i]
                sizes[label] += 1
            for i, label in zip(members, group, strict=True):
                weights[i] = totals[label] / sizes[label]
        return like(weights, losses)


def _log_sum_exp(logarithms: Sequence[float]) -> float:
    top = max(logarithms)
    return top + math.log(sum(math.exp(value - top) for value in logarithms))
