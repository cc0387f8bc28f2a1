"""Squared difference of real values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from mtlbench.contracts import Likelihood
from mtlbench.losses.elementwise import Elementwise


@dataclass(frozen=True)
class MSE(Elementwise):
    """Squared difference of output and target; shapes and missing labels as in `Elementwise`."""

    likelihood: ClassVar[Likelihood] = "gaussian"

    def distance(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sum of the squared differences."""
        return functional.mse_loss(output, target, reduction="sum")
