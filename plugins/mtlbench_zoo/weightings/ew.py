"""Equal weighting."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mtlbench.contracts import Need, Weighting


class EqualWeighting(Weighting):
    """Equal weighting: the sum of the losses.

    Minimises  sum_t L_t,  that is w_t = 1 for every task t.

    Source: the plain baseline of the field, also called linear scalarisation or unitary weighting; Kurin et
    al., NeurIPS 2022, arXiv:2201.04122 show how strong it is when tuned like the other methods.
    Heads: weighted, by 1. The weights sum to T, the number of tasks with a label in the batch.
    Deviations: none. Where a paper's "equal weighting" is the mean, learning rates differ by the factor T.
    """

    needs = Need.LOSSES
    properties: ClassVar[frozenset[str]] = frozenset({"permutation-equivariant", "scale-free"})

    def forward(self, losses: Tensor) -> Tensor:
        """Return ones ``[T]`` for the losses ``[T]``."""
        return torch.ones_like(losses)
