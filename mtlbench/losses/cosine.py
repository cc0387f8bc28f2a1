"""Angle between vectors that a map holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from mtlbench.contracts import Likelihood, Loss, labelled
from mtlbench.losses.checks import at_least_float32, require_real, require_shape


@dataclass(frozen=True)
class Cosine(Loss):
    """One minus the cosine between output and target, for each vector along the channels.

    output: ``[B, C, ...]``; its length plays no part. target: of the same shape, not of length 0; a NaN among
    a vector's C values means that it has no label. The number of labels counts vectors.
    """

    # For unit vectors 1 - cos is half the squared distance.
    likelihood: ClassVar[Likelihood] = "gaussian"

    def terms(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return (sum over the labelled vectors, their number as int64)."""
        require_real("Cosine", target)
        require_shape("Cosine", output, output.shape, target)
        output = at_least_float32(output)
        known = labelled(target).all(1)
        filled = torch.where(known.unsqueeze(1), target.to(output.dtype), 0)
        cosine = (functional.normalize(output, dim=1) * functional.normalize(filled, dim=1)).sum(1)
        return torch.where(known, 1 - cosine, 0).sum(), known.sum()
