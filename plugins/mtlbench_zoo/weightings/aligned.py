"""Aligned-MTL: the nearest gradients that are independent and equally long."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlbench.contracts import Need, Weighting
from mtlbench.errors import MtlbenchError
from mtlbench.solvers import ScaleMode, aligned_weights


class AlignedMTL(Weighting):
    """Aligned-MTL: task gradients are made orthogonal and equally long before they are summed.

    The update is the sum of the rows of the matrix that is nearest to the gradients J among all with
    orthogonal rows of one length s (Procrustes): its condition number is 1. With G = J Jᵀ = V L Vᵀ that is
    w = s V L^(-1/2) Vᵀ 1.  Identical gradients share one direction; directions that are rounding errors are
    left out; where all gradients are 0 all weights are 1.

    scale_mode: s, the root of an eigenvalue of G: of the smallest that counts, "min" (the default, which
    never makes a step longer than the sum), of the median, "median", or of the mean, "rmse".
    precision: the relative error of the gradients' products: eigenvalues below the largest times T times
    this do not count. The default, None, is that of the parameters' dtype.
    Source: Senushkin et al., "Independent component alignment for multi-task learning", CVPR 2023,
    arXiv:2305.19000, equations 9 to 11 and algorithm 1; with gradients in feature space their Aligned-MTL-UB.
    Heads: unweighted, as in the official code by default. Weights have no fixed sum; those of orthogonal
    gradients of one length are 1.
    Deviations: none from the official code in float32. LibMTL calls a function that PyTorch removed.
    TorchJD takes the mean of the aligned rows, 1/T of this sum, and the precision of its input.
    """

    needs = Need.GRAM
    heads = "unweighted"
    properties = frozenset({"permutation-equivariant", "scale-free"})

    def __init__(self, scale_mode: ScaleMode = "min", precision: float | None = None) -> None:
        super().__init__()
        if precision is not None and not 0 < precision < 1:
            raise MtlbenchError(f"aligned: precision must be between 0 and 1, got {precision}")
        self.scale_mode: ScaleMode = scale_mode
        self.precision = precision

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the Gram matrix ``[T, T]`` (float64); the losses do not matter."""
        products = gram.numpy()
        weights = aligned_weights(products, self.scale_mode, precision=self.precision or self.eps)
        return torch.from_numpy(weights)
