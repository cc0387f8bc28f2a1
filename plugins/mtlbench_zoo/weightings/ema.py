"""Weights averaged over steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtlbench.contracts import Need, Task, Weighting
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.weightings._wrapper import Wrapper


class EMA(Wrapper):
    """CR-MOGM: the weights of any method, averaged over steps: ``ema[of=mgda,alpha=0.9]``.

    With v the weights that the wrapped method answers,  w <- alpha w + (1 - alpha) v,  from the first v. In
    stochastic training v depends on the same batch as the gradients that it weights; the average makes them
    nearly independent, which is what convergence needs.

    of: the spec of the wrapped method, one that gives weights. alpha: how much of the average is kept, from 0
    (the wrapped method itself) to 1 (its first weights for ever).
    Source: Zhou et al., "On the convergence of stochastic multi-objective gradient manipulation and beyond",
    NeurIPS 2022, algorithm 1.
    Heads, scale and need are the wrapped method's, and what it promises, except non-conflict.
    Deviations: alpha is constant; the paper's corollary lets it rise towards 1 as the learning rate falls. A
    task's average starts when it first has a label, and rests while it has none.
    """

    average: Tensor
    seen: Tensor

    def __init__(
        self,
        tasks: Sequence[Task],
        weightings: Callable[[str], Weighting],
        of: str = "mgda",
        alpha: float = 0.9,
    ) -> None:
        super().__init__(tasks, weightings, of)
        if not 0 <= alpha <= 1:
            raise MtlbenchError(f"ema: alpha must be from 0 to 1, got {alpha}")
        if self.inner.needs is Need.BILEVEL:
            raise MtlbenchError(f"ema: {of!r} learns its weights over steps already; wrap another method")
        if self.inner.needs is Need.JACOBIAN:
            raise MtlbenchError(f"ema: {of!r} gives an update and no weights that could be averaged")
        if self.inner.needs is Need.LOSSES and not self._gives_weights(weightings(of)):
            raise MtlbenchError(f"ema: {of!r} gives an objective and no weights that could be averaged")
        if self.blocks != "model":
            raise MtlbenchError(
                f"ema: {of!r} has weights by {self.blocks}; only one weight a task is averaged"
            )
        self.alpha = alpha
        vars(self)["properties"] = self.properties - {"non-conflicting"}
        self.register_buffer("average", torch.zeros(len(tasks), dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(len(tasks), dtype=torch.bool))

    def forward(self, *statistics: Tensor) -> Tensor:
        """Return the averaged weights ``[T]``."""
        answer = super().forward(*statistics)
        weights = answer.detach().to(self.average)
        average = self.alpha * self.average[self.active] + (1 - self.alpha) * weights
        average = torch.where(self.seen[self.active], average, weights)
        self.average[self.active] = average
        self.seen[self.active] = True
        return average.to(answer)

    def _gives_weights(self, example: Weighting) -> bool:
        """Tell whether a weighting of losses answers weights, by asking one that is not used otherwise."""
        example.active = self.active
        answer: Tensor = example(torch.ones(len(self.active)))
        return answer.ndim == 1
