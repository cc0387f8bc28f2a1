"""Squared difference of real values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from mtlbench.contracts import Likelihood, Loss
from mtlbench.losses.checks import at_least_float32, require_real, require_shape


@dataclass(frozen=True)
class MSE(Loss):
    """Squared difference of output and target.

    output, target: real, of one shape ``[B, ...]``; NaN in the target where an element has no label. The
    number of labels counts elements: a vector of four coordinates is four.
    """

    likelihood: ClassVar[Likelihood] = "gaussian"

    def terms(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return (sum over the labelled elements, their number as int64)."""
        require_real("MSE", target)
        require_shape("MSE", output, output.shape, target)
        output = at_least_float32(output)
        labelled = ~target.isnan()
        # A missing label becomes the output itself: no difference, no gradient, and no NaN on the way.
        known = torch.where(labelled, target.to(output.dtype), output.detach())
        return functional.mse_loss(output, known, reduction="sum"), labelled.sum()
