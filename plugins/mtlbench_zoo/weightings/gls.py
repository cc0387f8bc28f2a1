"""The geometric loss strategy."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from mtlbench_zoo.weightings._nonnegative import NonnegativeLosses, inverse, like


class GLS(NonnegativeLosses):
    """Geometric loss strategy: the geometric mean of the losses.

    Minimises  M = (prod_t L_t)^(1/T) = exp(mean_t log L_t),  that is w_t = M / (T L_t).

    Source: Chennupati et al., CVPR workshops 2019, arXiv:1904.08492.
    Heads: weighted. The weights have no fixed sum; each weighted loss is worth M / T. They stay the same
    when all losses are scaled alike.
    Losses: >= 0. The mean is taken over those that are not exactly 0, T being their number, and a loss of 0
    gets weight 0; a negative one ends the run with an error.
    Deviations: computed in logarithms; LibMTL's product of losses leaves the range of float32 with some
    tens of tasks. The paper's focused variant, which multiplies chosen tasks again, is not here.
    """

    properties: ClassVar[frozenset[str]] = frozenset({"permutation-equivariant", "scale-free"})

    def forward(self, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the losses ``[T]``."""
        (values,) = self.recall(losses)
        logarithms = [math.log(value) for value in values if value > 0]
        count = max(len(logarithms), 1)
        worth = math.exp(sum(logarithms) / count) / count
        return like([worth * inverse(value) for value in values], losses)
