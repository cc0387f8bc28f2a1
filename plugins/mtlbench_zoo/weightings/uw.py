"""Uncertainty weighting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlbench.contracts import Likelihood, Need, Task, Weighting

_PRECISION: dict[Likelihood, float] = {"categorical": 1.0, "gaussian": 0.5, "laplace": 0.5}


class UW(Weighting):
    """Uncertainty weighting: losses over their learned noise.

    Minimises  sum_t k_t L_t / s_t^2 + log s_t  over the network and the noise scales s_t, with k_t = 1 where
    the loss is a cross-entropy and k_t = 1/2 where it is a regression loss (gaussian or laplace). What is
    learned is eta_t = log s_t^2, one parameter a task, in  sum_t k_t L_t exp(-eta_t) + eta_t / 2.
    At its optimum exp(eta_t) = 2 k_t L_t: each task counts by the inverse of its loss.

    initial_log_variance: where each eta_t starts. The paper reports that starts from -2 to 5 end alike; 0,
    the default here, starts from weights k_t.
    Source: Kendall, Gal & Cipolla, CVPR 2018, arXiv:1705.07115, equations 5 to 10; eta is their advice.
    Heads: weighted, as the objective is one scalar. The weights k_t exp(-eta_t) have no fixed sum.
    Deviations: LibMTL uses k_t = 1/2 for every task and starts from -0.5. As in the paper's experiments, an
    L1 loss is weighted like an L2 loss. The objective can be negative. Only tasks with a label in the
    batch enter it, so a noise scale rests while its task has none; weight decay must not act on eta.
    """

    needs = Need.LOSSES
    properties = frozenset({"permutation-equivariant"})

    factors: Tensor

    def __init__(self, tasks: Sequence[Task], initial_log_variance: float = 0.0) -> None:
        super().__init__(tasks)
        factors = torch.tensor([_PRECISION[task.loss.likelihood] for task in tasks])
        self.register_buffer("factors", factors, persistent=False)
        self.log_variance = nn.Parameter(torch.full((len(tasks),), float(initial_log_variance)))

    def forward(self, losses: Tensor) -> Tensor:
        """Return the objective, a scalar, for the losses ``[T]``."""
        eta: Tensor = self.log_variance
        factors = self.factors
        if len(losses) < len(eta):
            eta, factors = eta[self.active], factors[self.active]
        return torch.add((-eta).exp() * factors * losses, eta, alpha=0.5).sum()
