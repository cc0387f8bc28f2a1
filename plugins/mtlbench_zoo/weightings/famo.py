"""Fast adaptive multitask optimisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mtlbench.contracts import Task
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.weightings._nonnegative import NonnegativeLosses, like

_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # Adam's own defaults, which the method uses


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
    average: Tensor
    square: Tensor
    updates: Tensor

    def __init__(self, tasks: Sequence[Task], w_lr: float = 0.025, gamma: float = 0.001) -> None:
        super().__init__(tasks)
        if not 0 < w_lr < math.inf:
            raise MtlbenchError(f"famo: w_lr must be a finite number > 0, got {w_lr}")
        if not 0 <= gamma < math.inf:
            raise MtlbenchError(f"famo: gamma must be a finite number >= 0, got {gamma}")
        self.w_lr, self.gamma = w_lr, gamma
        for name in ("before", "logits", "average", "square", "updates"):
            self.buffer(name)

    def forward(self, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the losses ``[T]``."""
        values = self.read(losses)
        self.before[self.active] = values
        weights = _softmax(self.logits[self.active] - values.log(), values > 0)
        return like(weights, losses)

    def after_step(self, losses: Callable[[], Tensor]) -> None:
        """Move the logits by what the step did to the losses ``[T]`` of its batch."""
        after = self.read(losses()).to(self.before)
        before, logits = self.before[self.active], self.logits[self.active]
        known = (before > 0) & (after > 0) & after.isfinite()
        gain = torch.where(known, before.log() - after.log(), 0)
        weights = _softmax(logits, known)
        gradient = weights * (gain - weights @ gain) + self.gamma * logits
        updates = self.updates[self.active] + 1
        average = torch.lerp(gradient, self.average[self.active], _BETAS[0])
        square = torch.lerp(gradient**2, self.square[self.active], _BETAS[1])
        size = (square / (1 - _BETAS[1] ** updates)).sqrt() + _EPSILON
        logits = logits - self.w_lr * average / (1 - _BETAS[0] ** updates) / size
        state = {"logits": logits, "average": average, "square": square, "updates": updates}
        for name, value in state.items():
            buffer = self.get_buffer(name)
            buffer[self.active] = torch.where(known, value, buffer[self.active])


def _softmax(scores: Tensor, known: Tensor) -> Tensor:
    """Return the softmax over the known; 0 for the others, and for all where none is known."""
    return scores.masked_fill(~known, -torch.inf).softmax(0).masked_fill(~known, 0)
