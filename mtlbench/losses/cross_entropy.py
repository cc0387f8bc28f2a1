"""Cross-entropy of several logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from mtlbench.contracts import Likelihood, Loss
from mtlbench.losses.checks import at_least_float32, require_integer, require_shape


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Negative log-likelihood of a class whose logits are given: logsumexp(z) - z_y.

    output: logits ``[B, C]`` or ``[B, C, H, W]``. target: int64 ``[B]`` or ``[B, H, W]`` with classes in
    0..C-1 and -1 for no label.
    """

    likelihood: ClassVar[Likelihood] = "categorical"

    def terms(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return (sum in nats over the labelled elements, their number as int64)."""
        require_integer("CrossEntropy", target)
        require_shape("CrossEntropy", output, output[:, 0].shape, target)
        total = functional.cross_entropy(at_least_float32(output), target, ignore_index=-1, reduction="sum")
        return total, (target != -1).sum()
