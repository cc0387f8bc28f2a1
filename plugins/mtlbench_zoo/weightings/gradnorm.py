"""Gradient normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlbench.contracts import Need, Task, Weighting
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.weightings._state import Adam

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

    weights: Tensor
    first_losses: Tensor
    unit: Tensor

    def __init__(self, tasks: Sequence[Task], alpha: float = 1.5, learning_rate: float = 0.025) -> None:
        super().__init__(tasks)
        for name, value in (("alpha", alpha), ("learning_rate", learning_rate)):
            if not 0 <= value < math.inf:
                raise MtlbenchError(f"gradnorm: {name} must be a number >= 0, got {value}")
        self.alpha = alpha
        self.adam = Adam(len(tasks), learning_rate)
        self.register_buffer("weights", torch.ones(len(tasks), dtype=torch.float64))
        # 0: not seen yet
        self.register_buffer("first_losses", torch.zeros(len(tasks), dtype=torch.float64))
        self.register_buffer("unit", torch.zeros((), dtype=torch.float64))

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the Gram matrix ``[T, T]`` (float64) and the losses ``[T]``."""
        active = self.active.numpy()
        weights: Array = self.weights.numpy()[active]
        lengths = np.sqrt(gram.numpy().diagonal())
        rates = self._rates(np.abs(losses.double().numpy(force=True)), active)
        if not self.unit:
            self.unit.fill_(float(lengths.mean()))
        if self.unit:
            slope = self._derivative(weights, lengths / float(self.unit), rates)
            moved = weights + self.adam(self.active, torch.from_numpy(slope)).numpy()
            moved = np.maximum(moved, _SMALLEST)
            self.weights.numpy()[active] = moved * (weights.sum() / moved.sum())
        return torch.from_numpy(weights)

    def _rates(self, losses: Array, active: NDArray[np.int64]) -> Array:
        """Return the inverse training rates ``[T]``; 1 for a task whose loss has been 0 from the start."""
        seen: Array = self.first_losses.numpy()
        first = seen[active]
        seen[active] = first = np.where(first > 0, first, losses)
        progress = np.divide(losses, first, out=np.ones_like(losses), where=first > 0)
        return progress / progress.mean() if progress.any() else np.ones_like(progress)

    def _derivative(self, weights: Array, lengths: Array, rates: Array) -> Array:
        sizes = weights * lengths
        slope: Array = np.sign(sizes - sizes.mean() * rates**self.alpha) * lengths
        return slope
