"""Weights that are computed now and then."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mtlbench.contracts import Need, Task, Weighting
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.weightings._wrapper import Wrapper


class Every(Wrapper):
    """Any Gram method with its weights computed at every k-th step only: ``every[of=nash,k=10]``.

    Steps between reuse the last weights and cost what equal weighting costs: one backward pass. Where a task
    has a label that had none when the weights were computed, they are computed anew.

    of: the spec of the wrapped method. k: >= 1; it replaces the method's own ``every``.
    Source: the practice of Navon et al. (Nash-MTL), ICML 2022, arXiv:2202.01017, for any method.
    Heads, scale, need and what it promises are the wrapped method's; promises hold at the steps that compute.
    Deviations: a method that weights losses is refused, since its weights cost nothing; so is one that gives
    an update and no weights, since there is nothing to reuse.
    """

    def __init__(
        self, tasks: Sequence[Task], weightings: Callable[[str], Weighting], of: str = "mgda", k: int = 10
    ) -> None:
        super().__init__(tasks, weightings, of)
        if k < 1:
            raise MtlbenchError(f"every: k must be an integer >= 1, got {k}")
        if self.inner.needs is not Need.GRAM:
            has = (
                "weights losses, which costs nothing" if self.inner.needs is Need.LOSSES else "has no weights"
            )
            raise MtlbenchError(
                f"every: {of!r} {has}; wrap a method that needs the Gram matrix, such as mgda"
            )
        self.every = k
