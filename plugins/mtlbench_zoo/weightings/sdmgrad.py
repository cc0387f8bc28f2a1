"""Stochastic direction-oriented multi-objective gradient descent."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlbench.compiled import compiled
from mtlbench.contracts import Need, Task
from mtlbench.errors import MtlbenchError
from mtlbench.solvers.simplex import project_to_simplex
from mtlbench_zoo.weightings._state import SimplexState

Array = NDArray[np.float64]


class SDMGrad(SimplexState):
    """SDMGrad: the shortest vector near the mean gradient, by stochastic steps without bias.

    The update is  (sum_t w_t g_t + lamda g_0) / (1 + lamda)  with g_0 = 1/T sum_t g_t, where w goes down
    |sum_t w_t g_t + lamda g_0|^2 / 2  on the simplex: n_iter projected steps
    w <- P(w - lr v),  v <- momentum v + C (w + lamda / T)  from v = 0, at each training step from where w was
    left (1/T at first). C = J_1 J_2ᵀ / s^2 comes from the gradients of two independent batches, so that its
    expectation has no bias, with s the mean of sqrt(max(diag(J_1 J_2ᵀ), 0)), a mean length of gradients. The
    gradients of the update are those of a third batch.

    lamda: how strongly the mean gradient draws, >= 0; 0 is MGDA, a large one equal weighting. The authors'
    script for NYUv2 has 0.3. n_iter: >= 1, lr, >= 0, and momentum, from 0 to below 1, of w's steps: 20, 5 and
    0.5 in LibMTL; the authors' code for reinforcement learning has lr 10.
    Source: Xiao, Ban & Ji, "Direction-oriented multi-objective learning: simple and provable stochastic
    algorithms", NeurIPS 2023, arXiv:2305.18409, algorithm 1.
    Heads: unweighted, by the third batch. The weights sum to 1. Losses times c, or tasks in another order,
    give the same weights but for rounding errors, which steps as long as the default can amplify.
    Cost: three batches a step, so that an epoch, one pass over the data, has a third of the steps; each takes
    2 T + 1 backward passes of the shared part.
    Deviations: as in the authors' code one pair of batches serves all n_iter steps, where the paper's
    algorithm draws a pair for each, and C is divided by s^2 and the update by 1 + lamda. Where no product on
    the diagonal is positive, which noise can bring about, w rests (the code divides by 1e-8 there). Tasks
    without a label in all three batches rest; the others share the weight that they have together.
    """

    needs = Need.CROSS
    spaces = frozenset({"parameters"})
    heads = "unweighted"

    def __init__(
        self,
        tasks: Sequence[Task],
        lamda: float = 0.3,
        n_iter: int = 20,
        lr: float = 5.0,
        momentum: float = 0.5,
    ) -> None:
        super().__init__(tasks)
        for name, value in (("lamda", lamda), ("lr", lr)):
            if not 0 <= value < math.inf:
                raise MtlbenchError(f"sdmgrad: {name} must be a finite number >= 0, got {value}")
        if n_iter < 1:
            raise MtlbenchError(f"sdmgrad: n_iter must be an integer >= 1, got {n_iter}")
        if not 0 <= momentum < 1:
            raise MtlbenchError(f"sdmgrad: momentum must be from 0 to below 1, got {momentum}")
        self.lamda, self.n_iter, self.lr, self.momentum = lamda, n_iter, lr, momentum

    def forward(self, cross: Tensor, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the products ``[T, T]`` (float64); the losses do not matter."""
        weights = _descend(self.shares(), cross.numpy(), self.lamda, self.n_iter, self.lr, self.momentum)
        self.keep(weights)
        return torch.from_numpy((weights + self.lamda / len(weights)) / (1 + self.lamda))


@compiled()
def _descend(weights: Array, products: Array, lamda: float, n_iter: int, lr: float, momentum: float) -> Array:
    """Return where the steps on the simplex lead from ``weights``; products: ``J_1 J_2ᵀ`` ``[T, T]``."""
    count = len(weights)
    length = np.sqrt(np.maximum(np.diag(products), 0)).mean()
    if not length > 0:
        return weights
    scaled, velocity = products / length / length, np.zeros(count)
    for _ in range(n_iter):
        for i in range(count):
            velocity[i] *= momentum
            for j in range(count):
                velocity[i] += scaled[i, j] * (weights[j] + lamda / count)
        weights = project_to_simplex(weights - lr * velocity)
    return weights
