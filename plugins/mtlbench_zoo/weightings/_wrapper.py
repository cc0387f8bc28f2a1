"""A weighting around another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor

from mtlbench.contracts import Need, Task, Weighting


class Wrapper(Weighting):
    """Does what the wrapped weighting ``of`` does, until a subclass changes some of it.

    `needs`, `heads`, `spaces`, `properties`, `blocks` and `every` are those of the wrapped one; the class has
    those of the default, mgda. The wrapped one is a submodule: its state, and its generator's, are saved
    with it.
    """

    needs: ClassVar[Need] = Need.GRAM
    heads = "unweighted"

    def __init__(self, tasks: Sequence[Task], weightings: Callable[[str], Weighting], of: str) -> None:
        super().__init__(tasks)
        self.inner = inner = weightings(of)
        # What a class says once for all its instances, a wrapper only knows of each.
        told = ("needs", "heads", "spaces", "properties")
        vars(self).update({name: getattr(inner, name) for name in told})
        self.blocks, self.every = inner.blocks, inner.every

    def forward(self, *statistics: Tensor) -> Tensor:
        """Return what the wrapped weighting answers."""
        self.inner.active = self.active
        answer: Tensor = self.inner(*statistics)
        if self.inner.heads == "own":
            self.head_weights = self.inner.head_weights
        return answer

    def after_step(self, losses: Callable[[], Tensor]) -> None:
        """Pass it on."""
        self.inner.active = self.active
        self.inner.after_step(losses)

    def after_epoch(self, losses: Tensor) -> None:
        """Pass it on."""
        self.inner.after_epoch(losses)
