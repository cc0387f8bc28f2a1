"""Multi-objective meta learning."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtlbench.contracts import Lookahead, Need, Task, Weighting
from mtlbench.errors import MtlbenchError
from mtlbench.solvers import Normalization, gradient_scale, min_norm_point
from mtlbench_zoo.weightings._state import Adam

_UNRESOLVED = 1e-6
"""A vector that is shorter than this, relative to what it is the sum of, is 0 but for rounding errors."""


class MOML(Weighting):
    """MOML: weights are learned so that a step with them lowers every task's held-out loss.

    The weights are  w = softmax(a).  With g_i the gradients of the training batch, the model would go to
    theta' = theta - inner_lr sum_i w_i g_i.  The derivative there of held-out loss j by a is

        h_j = -inner_lr S [<g_i(theta), k_j(theta')>]_i,  S = diag(w) - w wᵀ the derivative of softmax,

    exactly, with k_j the gradient of that loss. The shortest vector  sum_j b_j h_j / s_j  in their convex
    hull (`mgda`) improves all of them; a takes one step of Adam against it, and the model is trained on the
    training batch by the new weights. Where it is 0, no change of a improves all.

    inner_lr: of the step ahead, > 0; None, the default, is the run's learning rate, as in the authors' code;
    LibMTL has 0.1. learning_rate: of Adam, >= 0: 1e-4 in the authors' code, 1e-3 in LibMTL.
    normalize: s_j, what h_j is divided by: "loss" the held-out loss (the default, that of the authors' code),
    "l2" |h_j| (LibMTL's), "loss+" both, "none" 1.
    Source: Ye, Lin, Yue, Guo, Xiao & Zhang, "Multi-objective meta learning", NeurIPS 2021, arXiv:2102.07121,
    algorithm 1 with one inner step, for multi-task learning.
    Heads: weighted; the derivatives count their gradients too. The weights start at 1/T and sum to 1.
    Data: each step draws two batches of the train split. The second is held out from this step's update only.
    Validation and test data are never looked at.
    Cost: an epoch, one pass over the data, has half of the steps; each takes 2 T backward passes and the
    memory of as many gradients.
    Deviations: the authors split a fixed held-out set from the training data and train the model on batches
    of both; LibMTL trains it on a third batch. In the authors' code b is applied to the h_j before they are
    divided by s_j. Tasks without a label in both batches rest.
    """

    needs = Need.BILEVEL
    spaces = frozenset({"parameters"})
    properties = frozenset({"permutation-equivariant"})

    logits: Tensor

    def __init__(
        self,
        tasks: Sequence[Task],
        inner_lr: float | None = None,
        learning_rate: float = 1e-4,
        normalize: Normalization = "loss",
    ) -> None:
        super().__init__(tasks)
        if inner_lr is not None and not 0 < inner_lr < math.inf:
            raise MtlbenchError(f"moml: inner_lr must be a finite number > 0, or None, got {inner_lr}")
        if not 0 <= learning_rate < math.inf:
            raise MtlbenchError(f"moml: learning_rate must be a finite number >= 0, got {learning_rate}")
        self.inner_lr = inner_lr
        self.normalize: Normalization = normalize
        self.register_buffer("logits", torch.zeros(len(tasks), dtype=torch.float64))
        self.adam = Adam(len(tasks), learning_rate)

    def forward(self, ahead: Lookahead, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` of the training batch."""
        logits: Tensor = self.logits[self.active]
        weights = logits.softmax(0)
        rate = ahead.rate if self.inner_lr is None else self.inner_lr
        cross, held = ahead.cross(rate * weights)
        slopes = -rate * softmax_slope(cross, weights).T.numpy()
        gram = slopes @ slopes.T
        scale = gradient_scale(gram, held.numpy(), self.normalize)
        shares = min_norm_point(gram / np.multiply.outer(scale, scale)) / scale
        shortest = shares @ slopes
        if np.linalg.norm(shortest) <= _UNRESOLVED * (shares @ np.sqrt(gram.diagonal())):
            shortest = np.zeros_like(shortest)  # Adam would bring rounding errors to full size
        logits = logits + self.adam(self.active, torch.from_numpy(shortest))
        self.logits[self.active] = logits
        return logits.softmax(0)


def softmax_slope(derivatives: Tensor, weights: Tensor) -> Tensor:
    """Turn derivatives ``[T, ...]`` by ``weights = softmax(a)`` ``[T]`` into those by ``a``."""
    slope = torch.diag(weights) - weights.outer(weights)
    return slope @ derivatives
