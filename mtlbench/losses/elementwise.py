"""What the losses of real values share."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from mtlbench.contracts import Loss, labelled
from mtlbench.losses.checks import at_least_float32, require_real, require_shape


class Elementwise(Loss):
    """A distance of output and target, element by element.

    output, target: real, of one shape ``[B, ...]``; NaN in the target where an element has no label. The
    number of labels counts elements: a vector of four coordinates is four.
    """

    @abstractmethod
    def distance(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sum of the distances, a scalar; 0 without gradient where the two are equal."""

    def terms(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return (sum over the labelled elements, their number as int64)."""
        name = type(self).__name__
        require_real(name, target)
        require_shape(name, output, output.shape, target)
        output = at_least_float32(output)
        known = labelled(target)
        # A missing label becomes the output itself: no difference, no gradient, and no NaN on the way.
        filled = torch.where(known, target.to(output.dtype), output.detach())
        return self.distance(output, filled), known.sum()
