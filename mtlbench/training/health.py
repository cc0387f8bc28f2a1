"""Whether an optimiser still trains: losses can stay finite while nothing is learned."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

NOTHING = 1e-12
"""A change of a parameter's sum that is none: a bias of 0 takes any, however small."""


class Health:
    """Remembers how a model began, and sees whether an optimiser changes it.

    A gradient beyond 1e19 is infinite once it is squared, so Adam divides by infinity and changes nothing any
    more; one far below Adam's epsilon changes nothing either. Both leave all losses finite. To look costs one
    pass over parameters and optimiser state, and no copy; so it is done once an epoch.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.start = self._sums()

    def fault(self) -> str | None:
        """Return why what was trained so far is no training, or None."""
        parameters = [p.detach() for group in self.optimizer.param_groups for p in group["params"]]
        if not _finite(parameters):
            return "a parameter is not finite"
        if not _finite(v for kept in self.optimizer.state.values() for v in kept.values()):
            return "the gradients were too large: the optimiser's averages of them are not finite"
        if torch.allclose(self._sums(), self.start, rtol=0, atol=NOTHING):
            return "the gradients were too small: the optimiser has changed no parameter"
        return None

    def _sums(self) -> Tensor:
        """Return the sum of each of the model's parameters, float64: hardly any change leaves all alike."""
        return torch.stack([p.detach().sum(dtype=torch.float64) for p in self.trained])


def _finite(values: Iterable[object]) -> bool:
    """Say whether all tensors are finite; a tensor's least and largest value are NaN where any is."""
    tensors = [v for v in values if isinstance(v, Tensor) and v.numel() and v.is_floating_point()]
    return all(math.isfinite(end.item()) for tensor in tensors for end in torch.aminmax(tensor))
