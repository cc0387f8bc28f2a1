"""Binary cross-entropy of one logit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from mtlbench.contracts import Likelihood, Loss
from mtlbench.errors import MtlbenchError
from mtlbench.losses.checks import at_least_float32, require_integer, require_shape


@dataclass(frozen=True)
class BinaryCrossEntropy(Loss):
    """Negative log-likelihood of a Bernoulli variable whose logit is given: softplus(z) - y z.

    output: logits, a map ``[B, 1, H, W]`` or a vector ``[B, 1]`` (``[B]`` is taken too). target: int64
    ``[B, H, W]`` or ``[B]`` with 1 for the foreground, 0 for the background and -1 for no label.
    """

    likelihood: ClassVar[Likelihood] = "categorical"

    def terms(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return (sum in nats over the labelled elements, their number as int64)."""
        require_integer("BinaryCrossEntropy", target)
        if output.dim() > 1 and output.shape[1] != 1:
            raise MtlbenchError(
                f"BinaryCrossEntropy: the output must have one channel, found shape {tuple(output.shape)}"
            )
        logits = output.squeeze(1) if output.dim() > 1 else output
        require_shape("BinaryCrossEntropy", output, logits.shape, target)
        logits = at_least_float32(logits)
        labelled = target >= 0
        total = functional.binary_cross_entropy_with_logits(
            logits, target.clamp(min=0).to(logits.dtype), weight=labelled.to(logits.dtype), reduction="sum"
        )
        return total, labelled.sum()
