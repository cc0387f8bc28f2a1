"""CAGrad: conflict-averse gradient descent."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mtlbench.contracts import Need, Weighting
from mtlbench.errors import MtlbenchError
from mtlbench.solvers import conflict_averse_correction


class CAGrad(Weighting):
    """CAGrad: of all updates near the mean gradient, the one whose worst task gains most.

    Maximises  min_t g_tᵀ d  subject to  |d - g_0| <= c |g_0|,  where g_0 = 1/T sum_t g_t. By duality
    d = g_0 + c |g_0| g_v / |g_v|  with g_v = sum_t v_t g_t and v the minimiser of  g_vᵀ g_0 + c |g_0| |g_v|
    on the simplex, which needs only the Gram matrix G = J Jᵀ. The update is d over its rescaling.

    Where a combination of the gradients is 0 (Pareto-stationary points) and the ball reaches the dual cone, d
    is the projection of g_0 on that cone, the limit of solutions nearby. Where g_0 is 0 the update is 0.

    c: the ball's radius over |g_0|; 0 is the mean gradient, below 1 the mean loss converges, from 1 on it is
    only Pareto-stationary points that are reached. 0.5 is the default of the official code; the paper takes
    0.4 for NYUv2.
    rescale: d is divided by 1 (0), by 1 + c² (1, the default of the official code) or by 1 + c (2).
    Source: Liu et al., "Conflict-averse gradient descent for multi-task learning", NeurIPS 2021,
    arXiv:2110.14048, equation 4 and algorithm 1.
    Heads: unweighted, as in the official code. Weights sum to (1 + c |g_0| / |g_v|) over the rescaling, so
    without conflict about to 1 + c, relative to the mean loss.
    Deviations: the official code for NYUv2 and Cityscapes multiplies the update by T. It, LibMTL and TorchJD
    solve with tolerances or floors that are absolute (LibMTL has uniform weights where losses are
    small); here the optimum is exact to rounding at any scale.
    """

    needs = Need.GRAM
    heads = "unweighted"
    properties = frozenset({"permutation-equivariant", "scale-free"})

    def __init__(self, c: float = 0.5, rescale: Literal[0, 1, 2] = 1) -> None:
        super().__init__()
        if not 0 <= c < math.inf:
            raise MtlbenchError(f"cagrad: c must be 0 or more, and finite, got {c}")
        self.c = c
        self.divisor = (1.0, 1 + c * c, 1 + c)[rescale]

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the Gram matrix ``[T, T]`` (float64); the losses do not matter."""
        weights = conflict_averse_correction(gram.numpy(), self.c)
        weights += 1 / len(weights)
        weights /= self.divisor
        return torch.from_numpy(weights)
