"""Nash-MTL: the update as the outcome of a bargain."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlbench.compiled import compiled
from mtlbench.contracts import Need, Weighting
from mtlbench.errors import MtlbenchError
from mtlbench.solvers import fair_weights


class NashMTL(Weighting):
    """Nash-MTL: tasks bargain for the direction of the update, and none can be paid off by scaling.

    Solves  G a = 1 / a  (elementwise) for a > 0, where G = J Jᵀ: then sum_t a_t g_t maximises the product of
    the gains g_tᵀ d over all directions d of one length. Weights are  w = a sqrt(|G|_F), the solution for
    the matrix divided by its Frobenius norm, times  min(1, max_norm / |sum_t w_t g_t|).

    The direction does not change when a task's loss is multiplied by a constant. At a Pareto-stationary
    point no bargain exists: weights grow large and the update is 0 to rounding. A gradient that is 0 takes
    no part; its task has the largest of the other weights, and all have 1 where all are 0.

    max_norm: the update is shortened to this length where it is longer; 0 leaves it as it is. 1, the default,
    is the paper's code.
    update_weights_every: weights are solved for on every so-manieth step and reused between, which makes
    those steps as cheap as equal weighting. 1, the default, is the paper's method; its speed-up uses 10 to
    100.
    Source: Navon et al., "Multi-task learning as a bargaining game", ICML 2022, arXiv:2202.01017, claim 3.1
    and algorithm 1.
    Heads: weighted, as the official code takes gradients of the weighted sum of losses. The weights have no
    fixed sum.
    Deviations: the official code approximates the solution by a sequence of at most 20 convex programs that
    start from the last step's weights, and where the program fails it goes on with those; LibMTL falls
    back to equal weights in silence where its solver (ECOS) is not installed. Here the equations hold to
    1e-9 at every step and weights depend on this step's gradients only. The official code clips the summed
    gradient of the shared parameters; here the weights are clipped, heads' included, as in TorchJD. Reused
    weights are not clipped anew.
    """

    needs = Need.GRAM
    properties = frozenset({"permutation-equivariant"})

    def __init__(self, max_norm: float = 1.0, update_weights_every: int = 1) -> None:
        super().__init__()
        if not 0 <= max_norm < math.inf:
            raise MtlbenchError(f"nash: max_norm must be 0 (no clipping) or more, and finite, got {max_norm}")
        if update_weights_every < 1:
            raise MtlbenchError(f"nash: update_weights_every must be 1 or more, got {update_weights_every}")
        self.max_norm = max_norm
        self.every = update_weights_every

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the Gram matrix ``[T, T]`` (float64); the losses do not matter."""
        products = gram.numpy()
        weights = fair_weights(products)
        _rescale(weights, products, self.max_norm)
        return torch.from_numpy(weights)


@compiled()
def _rescale(weights: NDArray[np.float64], gram: NDArray[np.float64], max_norm: float) -> None:
    """Multiply the solution for G so that it is that for ``G / |G|_F``; then shorten the update."""
    size, length = 0.0, 0.0
    for i in range(len(gram)):
        for j in range(len(gram)):
            size += gram[i, j] * gram[i, j]
            length += weights[i] * gram[i, j] * weights[j]
    factor = size**0.25 if size > 0 else 1.0
    length = factor * math.sqrt(max(length, 0.0))
    if 0 < max_norm < length:
        factor *= max_norm / length
    weights *= factor
