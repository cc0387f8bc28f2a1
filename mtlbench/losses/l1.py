"""Absolute difference of real values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from mtlbench.contracts import Likelihood
from mtlbench.losses.elementwise import Elementwise


@dataclass(frozen=True)
class L1(Elementwise):
    """Absolute difference of output and target; shapes and missing labels as in `Elementwise`."""

    likelihood: ClassVar[Likelihood] = "laplace"

    def distance(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sum of the absolute differences."""
        return functional.l1_loss(output, target, reduction="sum")
