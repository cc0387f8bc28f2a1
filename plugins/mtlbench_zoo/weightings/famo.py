"""Fast adaptive multitask optimisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor

from mtlbench.contracts import Task
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.weightings._nonnegative import NonnegativeLosses, like, softmax
from mtlbench_zoo.weightings._state import Adam


class FAMO(NonnegativeLosses):
    """Fast adaptive multitask optimisation: all losses shrink at the same rate.

    Minimises  c sum_t z_t log L_t  with z = softmax(x) and c = 1 / sum_t (z_t / L_t), both held fixed, that
    is w_t = c z_t / L_t. After the step the batch's losses L' are evaluated again, and the logits x take one
    Adam step along the gradient of  sum_t z_t (log L_t - log L'_t) + gamma |x|^2 / 2:  a task that improved
    less than the others gains weight.

    w_lr: learning rate of the logits, > 0. The paper's is 0.025.
    gamma: decay of the logits, >= 0. The paper's algorithm and LibMTL have 0.001; the official example file
    has 0.01, and the copy in GO4Align's code 0.00001.
    Source: Liu, Feng, Stone & Liu, NeurIPS 2023, arXiv:2306.03792.
    Heads: weighted. The weights sum to 1, and stay the same when all losses are scaled alike.
    Cost: one more forward pass a step, in train mode; running statistics are not updated twice.
    Losses: >= 0. One of exactly 0 gets weight 0, and the logit of a task without a label, or with a loss of
    0 before or after the step, rests; a negative loss ends the run with an error.
    Deviations: no 1e-8 is added to losses, which would matter for small ones; the least losses are 0. The
    official code also asks for gradients clipped to length 1 but clips before they exist; ``--clip`` is here
    a matter of the protocol. Each logit counts its own Adam steps, as one may rest.
    """

    properties: ClassVar[frozenset[str]] = frozenset({"permutation-equivariant", "scale-free"})

    before: Tensor
    logits: Tensor

    def __init__(self, tasks: Sequence[Task], w_lr: float = 0.025, gamma: float = 0.001) -> None:
        super().__init__(tasks)
        if not 0 < w_lr < math.inf:
            raise MtlbenchError(f"famo: w_lr must be a finite number > 0, got {w_lr}")
        if not 0 <= gamma < math.inf:
            raise MtlbenchError(f"famo: gamma must be a finite number >= 0, got {gamma}")
        self.gamma = gamma
        self.buffer("before")
        self.buffer("logits")
        self.adam = Adam(len(tasks), w_lr)

    def forward(self, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the losses ``[T]``."""
        values, before, logits = self.recall(losses, self.before, self.logits)
        scores = []
        for i, value in zip(self.places, values, strict=True):
            before[i] = value
            scores.append(-math.inf if value == 0 else logits[i] - math.log(value))
        self.keep([self.before], [before])
        weights = softmax(scores) if any(values) else [0.0] * len(values)
        return like(weights, losses)

    def after_step(self, losses: Callable[[], Tensor]) -> None:
        """Move the logits by what the step did to the losses ``[T]`` of its batch."""
        before, after = self.before[self.active], self.read(losses()).to(self.before)
        known = (before > 0) & (after > 0) & after.isfinite()
        moved = self.active[known.cpu()]
        gain = before[known].log() - after[known].log()
        logits = self.logits[moved]
        weights = logits.softmax(0)
        gradient = weights * (gain - weights @ gain) + self.gamma * logits
        self.logits[moved] = logits + self.adam(moved, gradient)
