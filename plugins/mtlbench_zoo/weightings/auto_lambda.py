"""Auto-Lambda: weights that make training on one batch lower the losses of another."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtlbench.contracts import Lookahead, Need, Task, Weighting
from mtlbench.errors import MtlbenchError, did_you_mean
from mtlbench_zoo.weightings._state import Adam


class AutoLambda(Weighting):
    """Auto-Lambda: weights are learned so that a step with them lowers losses on held-out data.

    With g_i the gradients of the training batch and eta the run's learning rate, the model would go to
    theta' = theta - eta sum_i w_i g_i.  The derivative there of the sum of the primary tasks' losses on a
    held-out batch by w_i is

        -eta sum_j <g_i(theta), k_j(theta')>,  k_j the gradient of held-out loss j,

    exactly, by one look ahead and without second derivatives. w takes one step of Adam against it, and the
    model is trained on the training batch by the new weights,  sum_i w_i g_i.

    primary: the names of the tasks that count; None, the default, are all that are not auxiliary (all where
    all are). init: the weights at first, 0.1 as in the paper. learning_rate: of Adam, >= 0; 1e-4 as in the
    authors' code for NYUv2 and Cityscapes (3e-4 there for CIFAR-100).
    Source: Liu, James, Davison & Johns, "Auto-Lambda: disentangling dynamic task relationships", TMLR 2022,
    arXiv:2202.03091, equations 3 to 6.
    Heads: weighted; the derivative counts their gradients too. The weights have no fixed sum and, as in the
    authors' code, may become negative.
    Data: each step draws two batches of the train split. The second is held out from this step's update only,
    as in the authors' code, which draws it from the train split in an order of its own. Validation and test
    data are never looked at.
    Cost: an epoch, one pass over the data, has half of the steps; each takes 2 T backward passes and the
    memory of as many gradients.
    Deviations: the authors approximate the derivative by central differences of losses, and their step ahead
    includes momentum and weight decay of SGD. Weights of tasks without a label in both batches rest.
    """

    needs = Need.BILEVEL
    spaces = frozenset({"parameters"})
    properties = frozenset({"permutation-equivariant"})

    weights: Tensor

    def __init__(
        self,
        tasks: Sequence[Task],
        primary: list[str] | None = None,
        init: float = 0.1,
        learning_rate: float = 1e-4,
    ) -> None:
        super().__init__(tasks)
        if not 0 < init < math.inf:
            raise MtlbenchError(f"auto-lambda: init must be a finite number > 0, got {init}")
        if not 0 <= learning_rate < math.inf:
            raise MtlbenchError(
                f"auto-lambda: learning_rate must be a finite number >= 0, got {learning_rate}"
            )
        names = [task.name for task in tasks]
        for name in primary or ():
            if name not in names:
                near = did_you_mean(name, names)
                raise MtlbenchError(f"auto-lambda: no task '{name}'.{near} Tasks: {', '.join(names)}")
        if primary is not None and not primary:
            raise MtlbenchError("auto-lambda: primary must name one task or more, got []")
        if primary is None:
            primary = [task.name for task in tasks if not task.auxiliary] or names
        self.primary = torch.tensor([float(name in primary) for name in names], dtype=torch.float64)
        self.register_buffer("weights", torch.full((len(tasks),), init, dtype=torch.float64))
        self.adam = Adam(len(tasks), learning_rate)

    def forward(self, ahead: Lookahead, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` of the training batch."""
        weights: Tensor = self.weights[self.active]
        cross, _ = ahead.cross(ahead.rate * weights)
        derivative = -ahead.rate * (cross @ self.primary[self.active])
        weights = weights + self.adam(self.active, derivative)
        self.weights[self.active] = weights
        return weights
