"""Impartial multi-task learning, the gradient half."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlbench.contracts import Need, Weighting
from mtlbench.solvers.imtl_g import impartial_weights


class IMTLG(Weighting):
    """IMTL-G: the update has the same projection onto every task's gradient.

    Finds w with  sum(w) = 1  and  g · g_t / |g_t|  equal for all tasks, g = sum_t w_t g_t: with C the cosines
    between the gradients,  w_t = b_t / |g_t|  (then divided by their sum) for  C b = 1,  the paper's closed
    form from the Gram matrix. For two tasks g is along the bisector: w_t is proportional to 1 / |g_t|.

    Source: Liu et al., "Towards impartial multi-task learning", ICLR 2021, equations 5 and 6.
    Heads: unweighted, as in the paper's algorithm. The weights sum to 1; from three tasks on some may be
    negative, and large where their sum is near 0 before the division, as in the paper.
    Deviations: what the paper leaves undefined is solved exactly. Parallel gradients count by their inverse
    lengths, the limit for two tasks. Where dependent gradients (two opposite ones, or one that is the sum of
    the others) allow equal projections only at 0, the weights are those of the limit and the update is 0;
    where the limit has no weights of sum 1 (one gradient is the mean of the others) all are 0. A gradient of
    length 0 sets no condition and has weight 0. TorchJD takes the pseudo-inverse of the Gram matrix: the same
    for independent or identical gradients, another length for parallel ones, a least-squares answer with
    unequal projections for other dependent ones. LibMTL divides by 0 there or fails to invert.
    """

    needs = Need.GRAM
    heads = "unweighted"
    properties = frozenset({"permutation-equivariant", "scale-free"})

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the Gram matrix ``[T, T]`` (float64)."""
        return torch.from_numpy(impartial_weights(gram.numpy()))
