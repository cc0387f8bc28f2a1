"""The multiple-gradient descent algorithm."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mtlbench.contracts import Need, Weighting
from mtlbench.solvers import (
    Normalization,
    gradient_scale,
    min_norm_point,
    min_norm_point_cvxpy,
    min_norm_point_frank_wolfe,
)

_SOLVERS = {
    "exact": min_norm_point,
    "frank-wolfe": min_norm_point_frank_wolfe,
    "cvxpy": min_norm_point_cvxpy,
}


class MGDA(Weighting):
    """Multiple-gradient descent: the shortest vector in the convex hull of the task gradients.

    Solves  min_a |sum_t a_t g_t / s_t|^2  subject to  a >= 0, sum(a) = 1,  from the Gram matrix G = J Jᵀ of
    the gradients g_t, and returns  w_t = a_t h / s_t  with h = T / sum_r (1 / s_r), the harmonic mean of the
    scales.  So w applies to the raw gradients: sum_t w_t g_t points along the shortest vector, and to first
    order no task gets worse along it. It is 0 exactly where no direction improves all tasks (a
    Pareto-stationary point), also when one gradient is 0.

    normalize: what gradients are divided by first, s_t: "none" 1 (the default), "l2" |g_t|, "loss" L_t,
    "loss+" L_t |g_t|; a loss counts by its absolute value, a gradient of length 0 is not scaled.
    solver: "exact", an active-set method of some microseconds; "cvxpy", the generic quadratic program; or
    "frank-wolfe", the paper's algorithm 2: steps towards one gradient at a time, until one is at most 1e-5 of
    the way or 10000 were made. That ends near the optimum, so that nothing is promised of it; where the
    squared length may be more than 0.05 above it, relative to the gradients' lengths, the run ends with an
    error.
    Source: Désidéri, C. R. Acad. Sci. 350, 2012; Sener & Koltun, NeurIPS 2018, arXiv:1810.04650, where the
    normalisations are in the published code. With gradients in feature space it is their MGDA-UB.
    Heads: unweighted, as each task's own parameters follow its own gradient (their algorithm 1). The weights
    sum to 1 without normalisation; with one, to the mean of h / s_t under a, at most T.
    Deviations: the official code and LibMTL stop Frank-Wolfe steps after 250, up to tens of percent above the
    optimum for ten tasks; the default here solves the problem to rounding. With a normalisation, the official
    code gives a_t to the raw losses, which is not the shortest vector's direction; LibMTL (gradients of
    parameters) applies a_t to the normalised gradients, the direction as here without the factor h. The
    factor keeps the length that of a gradient, so weights do not change when all losses are scaled alike.
    """

    needs = Need.GRAM
    heads = "unweighted"
    properties = frozenset({"permutation-equivariant", "scale-free", "non-conflicting"})

    def __init__(
        self,
        normalize: Normalization = "none",
        solver: Literal["exact", "frank-wolfe", "cvxpy"] = "exact",
    ) -> None:
        super().__init__()
        if solver == "frank-wolfe":
            vars(self)["properties"] = frozenset[str]()
        self.normalize: Normalization = normalize
        self.solve = _SOLVERS[solver]

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the Gram matrix ``[T, T]`` (float64) and the losses ``[T]``."""
        products = gram.numpy()
        if self.normalize == "none":
            weights = self.solve(products)
        else:
            scale = gradient_scale(products, losses.double().numpy(force=True), self.normalize)
            weights = self.solve(products / np.multiply.outer(scale, scale)) / scale
            weights /= (1 / scale).mean()
        return torch.from_numpy(weights)
