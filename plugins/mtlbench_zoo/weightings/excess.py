"""Robust multi-task learning with excess risks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtlbench.contracts import Need, Task
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.weightings._state import GradientState, columns, weighted_sum


class ExcessMTL(GradientState):
    """ExcessMTL: weight goes to the tasks that are furthest from what they could reach, not to noisy ones.

    A task's excess risk is estimated from its gradients with the diagonal Fisher matrix, as
    E_t = sum_p g_tp^2 / h_tp  with  h_tp = sqrt(sum of g_tp^2 over all steps so far).  The weights follow it
    multiplicatively:  w_t <- w_t exp(robust_step_size E_t / E_t(1)),  divided by their sum, where E_t(1) is
    the estimate at the first step. The update is  sum_t w_t g_t.

    robust_step_size: of the weights, >= 0; LibMTL's default is 0.01, which is ours; TorchJD's is 1.
    Source: He et al., ICML 2024, arXiv:2402.02009, equations 6 to 9.
    Heads: w_t times their gradient, as in the authors' code. The weights start at 1/T and sum to 1.
    Deviations: the authors' h has 1e-7 under the root; here an element that never had a gradient counts
    nothing, so that the scale of losses does not matter. Their weights, and LibMTL's, sum to T. At the first
    step, where E_t / E_t(1) is 1 for all, weights stay even, as there; TorchJD uses the raw estimate unless
    it is told to warm up for one step. A task whose gradient has been 0 counts from its first other one; one
    without a label in the batch keeps its weight relative to the others.
    """

    needs = Need.JACOBIAN
    spaces = frozenset({"parameters"})
    heads = "own"
    properties = frozenset({"permutation-equivariant", "scale-free"})

    log_weights: Tensor
    first_excess: Tensor

    def __init__(self, tasks: Sequence[Task], robust_step_size: float = 0.01) -> None:
        super().__init__(tasks)
        if not 0 <= robust_step_size < math.inf:
            raise MtlbenchError(f"excess: robust_step_size must be a number >= 0, got {robust_step_size}")
        self.robust_step_size = robust_step_size
        self.register_buffer("log_weights", torch.zeros(len(tasks), dtype=torch.float64))
        # 0: not seen yet
        self.register_buffer("first_excess", torch.zeros(len(tasks), dtype=torch.float64))

    def forward(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        """Return the update ``[P]`` for the Jacobian ``[T, P]``."""
        rows = self.rows(jacobian)
        excess = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for totals, gradients in columns(rows, jacobian.to(rows)):
            # hypot squares nothing, so that gradients of 1e20 and 1e-20 fit into float32
            torch.hypot(totals, gradients, out=totals)
            sizes = gradients.abs()
            shares = torch.where(totals > 0, sizes / totals, 0.0)
            excess += shares.mul_(sizes).sum(1, dtype=torch.float64)
        self.keep(rows)
        first = self.first_excess[self.active]
        first = torch.where(first > 0, first, excess)
        self.first_excess[self.active] = first
        relative = torch.where(first > 0, excess / first, 0.0)
        self.log_weights[self.active] += self.robust_step_size * relative
        self.log_weights -= self.log_weights.max()
        self.head_weights = weights = self.log_weights[self.active].softmax(0)
        return weighted_sum(jacobian, weights.tolist())
