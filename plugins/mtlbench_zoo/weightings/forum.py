"""FORUM: first-order multi-gradient descent for multi-objective bilevel optimisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlbench.contracts import Lookahead, Need, Task
from mtlbench.errors import MtlbenchError
from mtlbench.solvers.constrained import constrained_min_norm
from mtlbench_zoo.weightings._state import Adam, SimplexState
from mtlbench_zoo.weightings.moml import softmax_slope


class FORUM(SimplexState):
    """FORUM: all held-out losses go down while the model stays a minimiser of the weighted training loss.

    The weights are  w = softmax(a).  With L_t and g_t the losses and gradients of a training batch, and K_t
    the gradients of a held-out batch divided by their lengths,

        q(a, theta) = sum_t w_t L_t(theta) - sum_t w_t L_t(theta')

    is how far the model is from the minimum of the weighted training loss, which theta' stands for: the model
    after inner_step descents of length inner_lr on it. Its gradient, with theta' held fixed, is
    Q = sum_t w_t g_t  by the model and  S (L(theta) - L(theta'))  by a, S the derivative of softmax. The
    direction d minimises  max_t <K_t, d> + |d|^2 / 2  subject to  <Q, d> <= -rho |Q|^2:

        d = -(sum_t b_t K_t + nu Q),  nu = max(sum_t b_t p_t, 0),  p_t = rho - <Q, K_t> / |Q|^2,

    where b minimises  |sum_t b_t K_t + nu Q|^2 / 2 - nu rho |Q|^2  on the simplex. b is averaged,
    b <- b + (b_new - b) / epoch^0.75.  The model follows d, and so does a, by Adam.

    rho: how fast q must fall, >= 0; 0.1 in LibMTL. inner_lr, > 0, and inner_step, >= 1: of theta'; 0.1 and 5
    in LibMTL. learning_rate: of Adam for a, >= 0; 1e-3 there.
    Source: Ye, Lin, Cao, Zhang & Tsang, "A first-order multi-gradient algorithm for multi-objective bi-level
    optimization", ECAI 2024, arXiv:2401.09257, algorithm 1, for multi-task learning.
    Heads: as all parameters, by w of the training batch times nu and by b over lengths of the held-out batch.
    The weights that are recorded are the sums of both, which have no fixed sum.
    Data: each step draws two batches of the train split, and is trained on both. Validation and test data are
    never looked at.
    Cost: an epoch, one pass over the data, has half of the steps; each takes (2 + inner_step) T backward
    passes and the memory of 2 T gradients.
    Deviations: in the authors' code the program for b has half of rho in its last term, for which nu would
    not be the minimiser; its constraints are the same. It is solved exactly here. The average starts with the
    first b_new and goes by epochs, as there; the paper counts steps. Tasks without a label in both batches
    rest.
    """

    needs = Need.BILEVEL
    spaces = frozenset({"parameters"})
    properties = frozenset({"permutation-equivariant"})

    logits: Tensor
    epochs: Tensor

    def __init__(
        self,
        tasks: Sequence[Task],
        rho: float = 0.1,
        inner_lr: float = 0.1,
        inner_step: int = 5,
        learning_rate: float = 1e-3,
    ) -> None:
        super().__init__(tasks)
        for name, value in (("rho", rho), ("learning_rate", learning_rate)):
            if not 0 <= value < math.inf:
                raise MtlbenchError(f"forum: {name} must be a finite number >= 0, got {value}")
        if not 0 < inner_lr < math.inf:
            raise MtlbenchError(f"forum: inner_lr must be a finite number > 0, got {inner_lr}")
        if inner_step < 1:
            raise MtlbenchError(f"forum: inner_step must be an integer >= 1, got {inner_step}")
        self.rho, self.inner_lr, self.inner_step = rho, inner_lr, inner_step
        self.register_buffer("logits", torch.zeros(len(tasks), dtype=torch.float64))
        self.register_buffer("epochs", torch.ones((), dtype=torch.float64))
        self.adam = Adam(len(tasks), learning_rate)

    def forward(self, ahead: Lookahead, losses: Tensor) -> Tensor:
        """Return the weights ``[2, T]`` of the training batch and of the held-out batch."""
        logits = self.logits[self.active]
        weights = logits.softmax(0)
        gap = losses - ahead.losses(self.inner_lr * weights, self.inner_step)
        slope = softmax_slope(gap, weights)
        count = len(weights)
        gram = ahead.gram()
        lengths = gram.diagonal()[count:].sqrt()
        lengths = torch.where(lengths > 0, lengths, 1.0)
        # The unit gradients of the held-out losses, then the gradient of q, which has a part by the logits.
        basis = torch.zeros(count + 1, 2 * count, dtype=torch.float64)
        basis[:count, count:] = torch.diag(1 / lengths)
        basis[count, :count] = weights
        products = basis @ gram @ basis.T
        products[count, count] += slope @ slope
        shares, constraint = self._divide(products.numpy())
        self.logits[self.active] = logits + self.adam(self.active, constraint * slope)
        return torch.stack([constraint * weights, shares / lengths])

    def _divide(self, products: NDArray[np.float64]) -> tuple[Tensor, float]:
        """Return the averaged shares b ``[T]`` and nu, for the products ``[T + 1, T + 1]``."""
        new = constrained_min_norm(products, self.rho)
        old = self.shares()
        shares = old + (new - old) / float(self.epochs) ** 0.75
        self.keep(shares)
        square, along = products[-1, -1], products[-1, :-1]
        needed = self.rho - shares @ along / square if square > 0 else 0.0
        return torch.from_numpy(shares), max(float(needed), 0.0)

    def after_epoch(self, losses: Tensor) -> None:
        """Count the epoch."""
        self.epochs += 1
