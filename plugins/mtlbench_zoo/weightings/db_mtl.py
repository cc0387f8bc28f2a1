"""Dual-balancing multi-task learning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mtlbench.contracts import Need, Task
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.weightings._state import GradientState, squared_without_loss, weighted_sum


class DBMTL(GradientState):
    """DB-MTL: gradients of the log-losses, averaged over steps, all at the length of the longest.

    At step k, with g_t / L_t the gradient of log L_t,  y_t <- b y_t + (1 - b) g_t / L_t  from y_t = 0, where
    b = beta / k^beta_sigma. The update is  sum_t (max_s |y_s| / |y_t|) y_t.

    beta: how much of the average is kept, 0 to below 1; 0.9 as in LibMTL. beta_sigma: how fast that decays,
    >= 0; 0, the default, is no decay.
    Source: Lin et al., arXiv:2308.12029, algorithm 1.
    Heads: 1 / L_t times their gradient, that of log L_t. The update is a sum of T vectors of one length.
    Deviations: a loss counts by its absolute value and not below 1e-8 of the largest; LibMTL adds 1e-8. An
    average of length 0 stays 0. That of a task without a label in the batch rests. Losses times c give the
    same update, so its length is in no relation to that of other methods.
    """

    needs = Need.JACOBIAN
    spaces = frozenset({"parameters"})
    heads = "own"
    properties: ClassVar[frozenset[str]] = frozenset({"permutation-equivariant"})

    steps: Tensor

    def __init__(self, tasks: Sequence[Task], beta: float = 0.9, beta_sigma: float = 0.0) -> None:
        super().__init__(tasks)
        if not 0 <= beta < 1:
            raise MtlbenchError(f"db-mtl: beta must be from 0 to below 1, got {beta}")
        if not 0 <= beta_sigma < math.inf:
            raise MtlbenchError(f"db-mtl: beta_sigma must be a number >= 0, got {beta_sigma}")
        self.beta, self.beta_sigma = beta, beta_sigma
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        """Return the update ``[P]`` for the Jacobian ``[T, P]`` and the losses ``[T]``."""
        step = int(self.steps.add_(1)) if self.beta_sigma else 1
        kept = self.beta / step**self.beta_sigma
        sizes = [abs(loss) for loss in losses.tolist()]
        smallest = 1e-8 * max(sizes)
        sizes = [max(size, smallest) if smallest > 0 else 1.0 for size in sizes]
        self.head_weights = torch.from_numpy(np.array([1 / size for size in sizes]))
        rows, found = self.average(jacobian, kept, [(1 - kept) / size for size in sizes])
        squares = found[0].tolist()
        if squared_without_loss(squares):
            lengths = [math.sqrt(square) for square in squares]
        else:
            lengths = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).tolist()
        longest = max(lengths)
        factors = [longest / length if length > 1e-30 * longest else 0.0 for length in lengths]
        return weighted_sum(rows, factors).to(jacobian)
