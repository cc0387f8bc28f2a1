"""FairGrad: alpha-fair shares of the progress."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlbench.contracts import Need, Weighting
from mtlbench.errors import MtlbenchError
from mtlbench.solvers import fair_weights


class FairGrad(Weighting):
    """FairGrad: progress is shared among tasks as bandwidth is in a network, alpha-fairly.

    Solves  G w = w^(-1/alpha)  (elementwise) for w > 0, where G = J Jᵀ: then sum_t w_t g_t maximises
    sum_t (g_tᵀ d)^(1 - alpha) / (1 - alpha)  over all directions d of one length.

    At a Pareto-stationary point no such weights exist: they grow large and the update is 0 to rounding. A
    gradient that is 0 takes no part; its task has the largest of the other weights, and all have 1 where all
    are 0.

    alpha: above 0. Near 0 it becomes equal weighting, 1 (the default) is Nash-MTL's bargain, and the larger,
    the more the task with the least progress counts.
    With alpha above 1, gradients that cancel and lengths that differ by many orders of magnitude, weights can
    be too far apart for float64; the solver then gives up (`SolverError`).
    Source: Ban & Ji, "Fair resource allocation in multi-task learning", ICML 2024, arXiv:2402.15638,
    equations 3 to 5.
    Heads: weighted, as the official code takes gradients of the weighted sum of losses. The weights have no
    fixed sum; losses times c have weights times c^(-2 alpha / (1 + alpha)), so with alpha 1 the update does
    not change.
    Deviations: the official code and LibMTL hand the equations to a general least-squares solver with
    absolute tolerances, which stops far from the solution where losses are small (times 1e-4 in a study);
    here they hold to 1e-9 at any scale.
    """

    needs = Need.GRAM
    properties = frozenset({"permutation-equivariant"})

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        if not 0 < alpha < math.inf:
            raise MtlbenchError(f"fairgrad: alpha must be above 0 and finite, got {alpha}; 0 would be ew")
        self.alpha = alpha

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the Gram matrix ``[T, T]`` (float64); the losses do not matter."""
        return torch.from_numpy(fair_weights(gram.numpy(), self.alpha))
