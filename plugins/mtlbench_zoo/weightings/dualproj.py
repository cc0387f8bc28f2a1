"""DualProj: the mean gradient without its conflicts."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlbench.contracts import Need, Weighting
from mtlbench.solvers import dual_cone_projection


class DualProj(Weighting):
    """DualProj: the mean gradient, projected on the dual cone of the task gradients.

    The update is the vector nearest to  g_0 = 1/T sum_t g_t  that has no negative product with any task
    gradient. Its weights minimise  w^T G w  subject to  w_t >= 1/T,  from the Gram matrix G = J Jᵀ. Where
    no gradient conflicts with the mean, w_t = 1/T.

    To first order no task gets worse. A task with a gradient of 0 takes no part.

    Source: the projection of gradient episodic memory, Lopez-Paz & Ranzato, NeurIPS 2017, arXiv:1706.08840,
    equation 11, applied to the mean gradient as in Quinton & Rey, arXiv:2406.16232, who name it.
    Heads: unweighted, as the method combines gradients of shared parameters only. The weights are at least
    1/T each, so they sum to 1 or more.
    Deviations: TorchJD sets a Gram matrix with a trace below 1e-4 to zero and adds 1e-4 of the trace to its
    diagonal; here the projection is exact to rounding at any scale.
    """

    needs = Need.GRAM
    heads = "unweighted"
    properties = frozenset({"permutation-equivariant", "scale-free", "non-conflicting"})

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the Gram matrix ``[T, T]`` (float64); the losses do not matter."""
        products = gram.numpy()
        return torch.from_numpy(dual_cone_projection(products, _mean(len(products))))


@cache
def _mean(count: int) -> NDArray[np.float64]:
    """Return the weights ``[T]`` of the mean gradient."""
    return np.full(count, 1 / count)
