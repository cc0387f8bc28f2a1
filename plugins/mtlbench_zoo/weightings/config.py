"""ConFIG: the direction that has the same cosine with every task gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlbench.contracts import Need, Weighting
from mtlbench.errors import MtlbenchError
from mtlbench.solvers import config_weights


class ConFIG(Weighting):
    """ConFIG: a conflict-free update whose cosine with every task gradient is the same.

    The direction is  u = pinv(U) 1 / |pinv(U) 1|  with U the unit gradients, and the length the sum of the
    gradients' projections on it,  sum_t g_tᵀ u.  From the Gram matrix: with C the cosines between the
    gradients,  z = pinv(C) 1  and  u  is along  sum_t z_t g_t / |g_t|.

    No task gets worse to first order while the gradients are independent. Where they are not, the
    pseudo-inverse gives the nearest there is: 0 for two opposite gradients. A task with a gradient of 0
    takes no part.

    precision: the relative error of the gradients' products: eigenvalues of C below the largest times T
    times this do not count. The default, None, is that of the parameters' dtype.
    Source: Liu, Chu & Thuerey, "ConFIG: towards conflict-free training of physics informed neural networks",
    ICLR 2025, arXiv:2408.11104, equations 2 and 3, with equal weights of the directions.
    Heads: unweighted, as the method combines gradients of shared parameters. Weights have no fixed sum; those
    of orthogonal gradients of one length are 1.
    Deviations: the official code solves the [T, P] system by least squares (or a pseudo-inverse) and has a
    formula of its own for two tasks, which gives the same vector except for parallel gradients. The
    variants with momentum are not here.
    """

    needs = Need.GRAM
    heads = "unweighted"
    properties = frozenset({"permutation-equivariant", "scale-free"})

    def __init__(self, precision: float | None = None) -> None:
        super().__init__()
        if precision is not None and not 0 < precision < 1:
            raise MtlbenchError(f"config: precision must be between 0 and 1, got {precision}")
        self.precision = precision

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the Gram matrix ``[T, T]`` (float64); the losses do not matter."""
        weights = config_weights(gram.numpy(), precision=self.precision or self.eps)
        return torch.from_numpy(weights)
