"""The trimmed mean."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from mtlbench.contracts import Need, Weighting
from mtlbench.errors import MtlbenchError


class TrimmedMean(Weighting):
    """Trimmed mean: at every element of the gradient the extremes are left out before the mean is taken.

    Of the T task gradients at an element, the k largest and the k smallest are left out; the update is the
    mean of the others. It comes from federated learning, where some of the gradients may be wrong.

    trim_number: k, >= 0. At least one gradient is left at each element, so k counts as (T - 1) // 2 at most:
    the default 1 is the plain mean for one and two tasks and the median for three and four.
    Source: Yin, Chen, Kannan & Bartlett, ICML 2018, arXiv:1803.01498, definition 2.
    Heads: unweighted. The update is a mean, of 1/T of the length of equal weighting's where all agree.
    Deviations: the paper trims a share of the gradients; TorchJD, as here, a number, and refuses one that
    leaves nothing.
    """

    needs = Need.JACOBIAN
    heads = "unweighted"
    properties: ClassVar[frozenset[str]] = frozenset({"permutation-equivariant", "scale-free"})

    def __init__(self, trim_number: int = 1) -> None:
        super().__init__()
        if trim_number < 0:
            raise MtlbenchError(f"trimmed-mean: trim_number must be an integer >= 0, got {trim_number}")
        self.trim_number = trim_number

    def forward(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        """Return the update ``[P]`` for the Jacobian ``[T, P]``."""
        count = len(jacobian)
        trim = min(self.trim_number, (count - 1) // 2)
        if trim == 0:
            return jacobian.mean(0)
        return jacobian.sort(0).values[trim : count - trim].mean(0)
