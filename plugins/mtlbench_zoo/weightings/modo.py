"""Multi-objective gradient descent with double sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from mtlbench.contracts import Need, Task
from mtlbench.errors import MtlbenchError
from mtlbench.solvers.simplex import project_to_simplex
from mtlbench_zoo.weightings._state import SimplexState


class MoDo(SimplexState):
    """MoDo: the min-norm problem by one projected step at each training step, without bias.

    With J_1 and J_2 the task gradients of two independent batches,
    w <- P(w - gamma (J_1 J_2ᵀ w + rho w))  from w_t = 1/T, with P the projection onto the simplex. The
    expectation of J_1 J_2ᵀ is the Gram matrix of the expected gradients, where J_1 J_1ᵀ would add their
    variances. The update is  sum_t w_t g_t  with the gradients of a third batch.

    gamma: the step of w, >= 0; 0 is equal weighting. rho: how strongly w is drawn to even weights, >= 0. The
    defaults are those of LibMTL's version of the authors' code; that names 0.1 and 0.1 as its own.
    Source: Chen, Fernando, Ying & Chen, "Three-way trade-off in multi-objective learning", NeurIPS 2023,
    arXiv:2305.20057, algorithm 1.
    Heads: unweighted, by the third batch. The weights sum to 1.
    Cost: three batches a step, so that an epoch, one pass over the data, has a third of the steps; each takes
    2 T + 1 backward passes of the shared part.
    Deviations: none from the paper in w. gamma is per squared unit of loss, as there. The authors' code draws
    two batches and updates by their sum; LibMTL counts each of the three as a batch of its epoch's full
    number of steps, so that it sees three times the data, and averages heads' gradients over all three.
    Tasks without a label in all three rest; the others share the weight that they have together.
    """

    needs = Need.CROSS
    spaces = frozenset({"parameters"})
    heads = "unweighted"
    properties = frozenset({"permutation-equivariant"})

    def __init__(self, tasks: Sequence[Task], gamma: float = 1e-3, rho: float = 0.1) -> None:
        super().__init__(tasks)
        for name, value in (("gamma", gamma), ("rho", rho)):
            if not 0 <= value < math.inf:
                raise MtlbenchError(f"modo: {name} must be a finite number >= 0, got {value}")
        self.gamma, self.rho = gamma, rho

    def forward(self, cross: Tensor, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the products ``[T, T]`` (float64); the losses do not matter."""
        weights = self.shares()
        slope = cross.numpy() @ weights + self.rho * weights
        weights = project_to_simplex(weights - self.gamma * slope)
        return self.keep(weights)
