"""Scale-invariant linear scalarisation."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from mtlbench_zoo.weightings._nonnegative import NonnegativeLosses, inverse, like


class ScaleInvariant(NonnegativeLosses):
    """Scale-invariant scalarisation: the sum of the logarithms of the losses.

    Minimises  sum_t log L_t,  that is w_t = 1 / L_t. Losses of other units give the same update.

    Source: the baseline SI of Navon et al., ICML 2022, arXiv:2202.01017, called scaleinvls in its code.
    Heads: weighted. The weights have no fixed sum; each weighted loss is worth 1.
    Losses: >= 0. One of exactly 0 gets weight 0; a negative one ends the run with an error.
    Deviations: none but these two, where the official code gives infinite weights and NaN.
    """

    properties: ClassVar[frozenset[str]] = frozenset({"permutation-equivariant"})

    def forward(self, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the losses ``[T]``."""
        (values,) = self.recall(losses)
        return like([inverse(value) for value in values], losses)
