"""Stochastic multi-objective gradient correction."""

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
from mtlbench_zoo.weightings._state import (
    GradientState,
    columns,
    divide,
    shares_of,
    squared_without_loss,
    squares,
    weighted_sum,
)

Array = NDArray[np.float64]


class MoCo(GradientState):
    """MoCo: the min-norm problem on averaged gradients, by one projected step at each training step.

    At step k, with  b_k = beta / k^beta_sigma  and  c_k = gamma / k^gamma_sigma:
    y_t <- y_t + b_k (g_t - y_t)  from y_t = 0, which takes the bias out of noisy gradients;
    w <- P(w - c_k (M + rho I) w)  from w_t = 1/T, with P the projection onto the simplex and M = Y Yᵀ divided
    by its mean diagonal. The update is  sum_t w_t y_t.

    beta, beta_sigma, gamma, gamma_sigma, rho: as above, numbers >= 0, beta at most 1; the defaults are those
    of LibMTL, which the author contributed to.
    Source: Fernando et al., ICLR 2023, arXiv:2210.12624, algorithm 1.
    Heads: unweighted. The weights sum to 1, and y starts at b_1 times the first gradients.
    Deviations: the paper has M = Y Yᵀ; without the division gamma would depend on the scale of the losses.
    LibMTL first brings each gradient to the length of its loss and takes a softmax in place of the
    projection, which flattens weights that lie on the simplex already. Averages of tasks without a label in
    the batch rest; the others share the weight that they have together.
    """

    needs = Need.JACOBIAN
    spaces = frozenset({"parameters"})
    heads = "unweighted"
    properties = frozenset({"permutation-equivariant", "scale-free"})

    weights: Tensor
    steps: Tensor

    def __init__(
        self,
        tasks: Sequence[Task],
        beta: float = 0.5,
        beta_sigma: float = 0.5,
        gamma: float = 0.1,
        gamma_sigma: float = 0.5,
        rho: float = 0.0,
    ) -> None:
        super().__init__(tasks)
        given = {
            "beta": beta,
            "beta_sigma": beta_sigma,
            "gamma": gamma,
            "gamma_sigma": gamma_sigma,
            "rho": rho,
        }
        for name, value in given.items():
            if not 0 <= value < math.inf:
                raise MtlbenchError(f"moco: {name} must be a number >= 0, got {value}")
        if not 0 < beta <= 1:
            raise MtlbenchError(f"moco: beta must be above 0 and at most 1, got {beta}")
        self.beta, self.beta_sigma = beta, beta_sigma
        self.gamma, self.gamma_sigma, self.rho = gamma, gamma_sigma, rho
        self.register_buffer("weights", torch.full((len(tasks),), 1 / len(tasks), dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        """Return the update ``[P]`` for the Jacobian ``[T, P]``."""
        step = int(self.steps.add_(1))
        follow = self.beta / step**self.beta_sigma
        every, active = self.weights.numpy(force=True), self.active.numpy(force=True)
        weights = shares_of(every, active)
        rows, found = self.average(jacobian, 1 - follow, [follow] * len(weights), weights.tolist())
        if not squared_without_loss(found[0].tolist()):
            found = _along(rows, torch.from_numpy(weights).to(rows.device)).numpy(force=True)
        weights = _descend(weights, found, self.gamma / step**self.gamma_sigma, self.rho)
        divide(every, active, weights)
        if not self.weights.is_cpu:
            self.weights.copy_(torch.from_numpy(every))
        return weighted_sum(rows, weights.tolist()).to(jacobian)


@compiled()
def _descend(weights: Array, found: Array, step: float, rho: float) -> Array:
    """Return the weights after a step; found: the diagonal of M, and M w ``[2, T]``."""
    mean = found[0].mean()
    if not mean > 0:
        return weights
    return project_to_simplex(weights - step * (found[1] / mean + rho * weights))


def _along(rows: Tensor, weights: Tensor) -> Tensor:
    """Return the diagonal of ``M = Y Yᵀ`` and ``M w``, float64 ``[2, T]``, without M and in float64."""
    found = torch.zeros(2, len(rows), dtype=torch.float64, device=rows.device)
    for (averages,) in columns(rows):
        part = averages.double()
        found += torch.stack((squares(part), torch.mv(part, weights @ part)))
    return found
