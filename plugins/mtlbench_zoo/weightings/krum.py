"""Krum: the gradients that lie nearest to the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtlbench.contracts import Need, Task, Weighting
from mtlbench.errors import MtlbenchError

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
        products = gram.double().numpy(force=True)
        count = len(products)
        selected = min(self.n_selected, count)
        weights = np.zeros(count)
        weights[_select(products, max(count - self.n_byzantine - 2, 1), selected)] = 1 / selected
        return torch.from_numpy(weights).to(gram)


def _select(gram: np.ndarray, neighbours: int, selected: int) -> list[int]:
    """Return the ``selected`` indices with the least sums of squares to their nearest ``neighbours``."""
    squares = gram.diagonal()
    sizes = squares[:, None] + squares
    distances = np.maximum(sizes - 2 * gram, 0)
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : min(neighbours, len(gram) - 1)]
    scores = np.take_along_axis(distances, nearest, axis=1).sum(axis=1)
    noise = _ROUNDING * np.take_along_axis(sizes, nearest, axis=1).sum(axis=1)
    chosen: list[int] = []
    for _ in range(selected):
        best = int(scores.argmin())
        equal = scores - scores[best] <= noise + noise[best]
        first = int(np.flatnonzero(equal & np.isfinite(scores))[0])
        chosen.append(first)
        scores[first] = np.inf
    return chosen
