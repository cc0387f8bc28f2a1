"""Gradient surgery by projecting conflicting gradients."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mtlbench.contracts import Need
from mtlbench.solvers.surgery import project_conflicts
from mtlbench_zoo.weightings._state import MeetingState


class PCGrad(MeetingState):
    """Projecting conflicting gradients: each task gives up what points against another.

    Each task i starts from its own gradient g_i and meets the other tasks j in a random order; where
    g_i · g_j < 0, the part along g_j is removed:  g_i <- g_i - (g_i · g_j / |g_j|^2) g_j.  The partner's
    gradient is always the original one. The update is the sum of what is left of all. It is computed on
    coefficients, from the Gram matrix alone, and equals the computation on vectors to rounding.

    Source: Yu et al., NeurIPS 2020, arXiv:2001.06782, algorithm 1.
    Heads: unweighted, as the paper operates on shared gradients. The update is a sum, like equal weighting's:
    the weights are at least 1 each and all 1 where nothing conflicts. A task of gradient 0 takes part in
    nothing and has weight 1.
    Deviations: none from the paper. LibMTL lets a task be its own partner, which can remove its gradient for
    three tasks and more; TorchJD draws a task's order from torch's global generator. For two tasks the
    order does not matter, no conflict is left and the update is twice `upgrad`'s. For more tasks the result
    depends on the order and conflicts may remain.
    """

    needs = Need.GRAM
    heads = "unweighted"
    properties: ClassVar[frozenset[str]] = frozenset({"scale-free"})

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the Gram matrix ``[T, T]`` (float64)."""
        products = gram.numpy()
        return torch.from_numpy(project_conflicts(products, self.draws(len(products))))
