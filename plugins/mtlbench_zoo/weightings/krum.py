"""Krum: the gradients that lie nearest to the others."""

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
from mtlbench.solvers.gram import failure, least_square
from mtlbench.solvers.surgery import others_in_order

Array = NDArray[np.float64]

_ROUNDING = 1e-12
"""Relative differences of scores that rounding errors of a Gram matrix can make."""


class Krum(Weighting):
    """Krum: keeps the task gradients with the nearest neighbours and leaves out the rest.

    The score of a task is the sum of the squared distances  |g_s - g_t|^2 = G_ss + G_tt - 2 G_st  to its
    T - f - 2 nearest other gradients (at least one). The m tasks with the least scores weigh 1/m, the others
    0; of equal scores the task that comes first is taken, so the method is not indifferent to the order.

    n_byzantine: f, how many gradients may be arbitrarily wrong; needs T >= f + 3 tasks, and the paper's
    guarantee T > 2 f + 2. 0, the default, trusts all.
    n_selected: m. 1, the default, is Krum; more is Multi-Krum. Where a batch has labels of fewer tasks, all
    of those.
    Source: Blanchard et al., "Machine learning with adversaries: Byzantine tolerant gradient descent",
    NeurIPS 2017, arXiv:1703.02757, section 4. Its gradients are those of workers that compute the same one;
    here they are those of the tasks.
    Heads: unweighted, or those of the tasks that are left out would never be trained. Weights sum to 1.
    Deviations: none from the paper. TorchJD sums distances instead of their squares, which may select other
    tasks where more than one neighbour counts.
    """

    needs = Need.GRAM
    heads = "unweighted"
    properties = frozenset({"scale-free"})

    def __init__(self, tasks: Sequence[Task], n_byzantine: int = 0, n_selected: int = 1) -> None:
        super().__init__(tasks)
        if n_byzantine < 0 or n_byzantine > max(len(tasks) - 3, 0):
            raise MtlbenchError(
                f"krum: n_byzantine must be from 0 to the number of tasks less 3, got {n_byzantine} for"
                f" {len(tasks)} tasks"
            )
        if n_selected < 1 or n_selected > len(tasks):
            raise MtlbenchError(
                f"krum: n_selected must be from 1 to the number of tasks, got {n_selected} for {len(tasks)}"
                " tasks"
            )
        self.n_byzantine, self.n_selected = n_byzantine, n_selected

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the Gram matrix ``[T, T]`` (float64); the losses do not matter."""
        products = gram.numpy()
        neighbours = max(len(products) - self.n_byzantine - 2, 1)
        weights, solved = _krum(products, neighbours, min(self.n_selected, len(products)))
        if not solved:
            raise failure("krum", products, math.inf, 0)
        return torch.from_numpy(weights)


@compiled()
def _krum(gram: Array, neighbours: int, selected: int) -> tuple[Array, bool]:
    """Weigh the ``selected`` tasks with the least sums of squares to their nearest ``neighbours``."""
    count = len(gram)
    weights, scores, noise, distances = np.zeros(count), np.zeros(count), np.zeros(count), np.empty_like(gram)
    if not least_square(gram) >= 0:
        return weights, False
    for i in range(count):
        for j in range(count):
            distances[i, j] = max(gram[i, i] + gram[j, j] - 2 * gram[i, j], 0.0)
    nearest = others_in_order(distances)
    for i in range(count):
        for j in nearest[i, :neighbours]:
            scores[i] += distances[i, j]
            noise[i] += _ROUNDING * (gram[i, i] + gram[j, j])
    for _ in range(selected):
        best = chosen = int(scores.argmin())
        for i in range(count - 1, -1, -1):
            if weights[i] == 0 and scores[i] - scores[best] <= noise[i] + noise[best]:
                chosen = i
        weights[chosen] = 1 / selected
        scores[chosen] = np.inf
    return weights, True
