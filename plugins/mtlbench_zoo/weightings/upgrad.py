"""UPGrad: unconflicting projections of gradients."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlbench.contracts import Need, Weighting
from mtlbench.solvers import dual_cone_projection


class UPGrad(Weighting):
    """UPGrad: the mean of the task gradients, each projected on the dual cone of all.

    The update is  1/T sum_t proj(g_t),  where proj(g) is the vector nearest to g among those that have no
    negative product with any task gradient. Its weights are  w = 1/T sum_t p_t  with p_t the minimiser of
    p^T G p  subject to  p >= e_t,  from the Gram matrix G = J Jᵀ. Where no gradients conflict w_t = 1/T.

    To first order no task gets worse. The update is 0 exactly where no direction improves all tasks strictly
    whose gradients are not 0; a task with a gradient of 0 takes no part.

    Source: Quinton & Rey, "Jacobian descent for multi-objective optimization", arXiv:2406.16232, equations 3
    and 4 and proposition 1.
    Heads: unweighted, as the method combines gradients of shared parameters only. The weights are at least
    1/T each, so they sum to 1 or more.
    Deviations: the official code (TorchJD) and LibMTL set a Gram matrix with a trace below 1e-4 to zero, so
    that small losses are averaged, and add 1e-4 of the trace to its diagonal, which leaves some conflict;
    here the projections are exact to rounding at any scale.
    """

    needs = Need.GRAM
    heads = "unweighted"
    properties = frozenset({"permutation-equivariant", "scale-free", "non-conflicting"})

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the Gram matrix ``[T, T]`` (float64); the losses do not matter."""
        products = gram.numpy()
        projections = dual_cone_projection(products, _parts_of_mean(len(products)))
        return torch.from_numpy(np.add.reduce(projections))


@cache
def _parts_of_mean(count: int) -> NDArray[np.float64]:
    """Return the weights ``[T, T]`` of each task's part in the mean gradient."""
    return np.eye(count) / count
