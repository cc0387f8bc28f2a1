"""Gradient normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlbench.compiled import compiled
from mtlbench.contracts import Need, Task, Weighting
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.weightings._state import adam_step

_SMALLEST = 1e-3

Array = NDArray[np.float64]


class GradNorm(Weighting):
    """GradNorm: learned weights that bring gradients to lengths which let all tasks train at one pace.

    Minimises over w  sum_t | w_t |g_t| - m r_t^alpha |,  where m is the mean of all w_t |g_t| and r_t the
    inverse training rate: L_t over its first value, relative to the mean of that over the tasks. The target
    m r_t^alpha is held constant, so the derivative is  sign(w_t |g_t| - m r_t^alpha) |g_t|.  Each answer is
    followed by one step of Adam on w, after which the weights are brought back to their sum, T.

    alpha: how strongly a task that lags behind is favoured, >= 0; 1.5 in the paper for NYUv2, 0.12 for its
    toy problem. learning_rate: of the weights; 0.025 in the paper's experiments.
    Source: Chen, Badrinarayanan, Lee & Rabinovich, ICML 2018, arXiv:1711.02257, algorithm 1.
    Heads: weighted, as the objective is sum_t w_t L_t. The weights start at 1 each and sum to T.
    Deviations: lengths are of the gradients that ``--grad`` gives, the paper's are of its last shared layer.
    They are divided by their mean at the first step, so that losses times c give the same weights in spite of
    Adam's epsilon. A weight is not let below 0.001 before the sum is restored, where the paper could make it
    negative. In a batch without labels for some tasks, the others keep the sum they have; a task's first loss
    is that of the first batch with a label. LibMTL learns softmax logits instead, with the network's
    optimiser and from the second epoch on.
    """

    needs = Need.GRAM
    heads = "weighted"
    properties = frozenset({"permutation-equivariant", "scale-free", "diagonal"})

    state: Tensor

    def __init__(self, tasks: Sequence[Task], alpha: float = 1.5, learning_rate: float = 0.025) -> None:
        super().__init__(tasks)
        for name, value in (("alpha", alpha), ("learning_rate", learning_rate)):
            if not 0 <= value < math.inf:
                raise MtlbenchError(f"gradnorm: {name} must be a number >= 0, got {value}")
        self.alpha, self.learning_rate = alpha, learning_rate
        # Its rows: weights; first losses, 0 where not seen yet; the unit of lengths, in the first place; then
        # those of Adam. It is one tensor since to look six of them up takes longer than all the rest.
        self.register_buffer("state", torch.zeros(6, len(tasks), dtype=torch.float64))
        self.state[0] = 1

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the Gram matrix ``[T, T]`` (float64) and the losses ``[T]``."""
        arrays = [each.numpy() for each in (gram, losses.double(), self.active, self.state)]
        return torch.from_numpy(_step(self.alpha, self.learning_rate, *arrays))


@compiled()
def _step(
    alpha: float,
    learning_rate: float,
    gram: Array,
    losses: Array,
    active: NDArray[np.int64],
    state: Array,
) -> Array:
    """Return the weights ``[T]`` of the active tasks, and then move them and their state."""
    weights, first_losses, unit = state[0], state[1], state[2]
    first, second, steps = state[3], state[4], state[5]
    count, given = len(active), np.take(weights, active)
    lengths = np.sqrt(np.diag(gram))
    rates = _rates(np.abs(losses), active, first_losses)
    if unit[0] == 0:
        unit[0] = lengths.mean()
    if unit[0] > 0:
        lengths /= unit[0]
        sizes = given * lengths
        slope = np.sign(sizes - sizes.mean() * rates**alpha) * lengths
        moved = np.maximum(given + adam_step(learning_rate, first, second, steps, active, slope), _SMALLEST)
        moved *= given.sum() / moved.sum()
        for i in range(count):
            weights[active[i]] = moved[i]
    return given


@compiled()
def _rates(losses: Array, active: NDArray[np.int64], first_losses: Array) -> Array:
    """Return the inverse training rates ``[T]``; 1 for a task whose loss has been 0 from the start."""
    progress = np.ones(len(active))
    for i in range(len(active)):
        if not first_losses[active[i]] > 0:
            first_losses[active[i]] = losses[i]
        if first_losses[active[i]] > 0:
            progress[i] = losses[i] / first_losses[active[i]]
    return progress / progress.mean() if progress.any() else np.ones(len(active))
