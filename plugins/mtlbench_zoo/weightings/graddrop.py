"""Gradient sign dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mtlbench.contracts import Need, Task, Weighting
from mtlbench.errors import MtlbenchError


class GradDrop(Weighting):
    """GradDrop: at every element of the gradient one sign is drawn, and what has the other is dropped.

    With p and n the sums of the positive and of the absolute negative task gradients at an element, its
    positive sign purity is  P = p / (p + n).  A number U is drawn evenly from 0 to 1; where U < P the
    positive gradients are summed, elsewhere the negative ones. In the mean this is  (p^2 - n^2) / (p + n),
    which is the plain sum, p - n.

    leak: what share of a task's gradient goes round the dropout, from 0 (the default) to 1: one number for
    all tasks or one a task. With 1 for all it is equal weighting.
    Source: Chen et al., NeurIPS 2020, arXiv:2010.06808, algorithm 1, with the identity as activation f.
    Heads: unweighted. The update is a sum, like equal weighting's, without what was dropped.
    Deviations: the paper puts it at a layer's features, which is ``--grad features`` here, and takes the
    purity of the gradients times the sign of the activations, summed over the batch; here each element of
    the gradient is on its own, as in TorchJD, also with ``--grad parameters``. U = P counts as negative.
    """

    needs = Need.JACOBIAN
    heads = "unweighted"
    properties: ClassVar[frozenset[str]] = frozenset({"permutation-equivariant", "scale-free"})

    def __init__(self, tasks: Sequence[Task], leak: float | list[float] = 0.0) -> None:
        super().__init__(tasks)
        self.leak = list(leak) if isinstance(leak, list | tuple) else [leak] * len(tasks)
        if len(self.leak) != len(tasks):
            names = ", ".join(task.name for task in tasks)
            raise MtlbenchError(
                f"graddrop: leak must be one number, or one for each of the tasks {names}: "
                f"got {len(self.leak)} for {len(tasks)} tasks"
            )
        for share in self.leak:
            if not 0 <= share <= 1:
                raise MtlbenchError(f"graddrop: leak must be from 0 to 1, got {share}")
        if len(set(self.leak)) > 1:
            vars(self)["properties"] = self.properties - {"permutation-equivariant"}

    def forward(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        """Return the update ``[P]`` for the Jacobian ``[T, P]``."""
        positive, negative = torch.zeros_like(jacobian[0]), torch.zeros_like(jacobian[0])
        for row in jacobian:
            positive += row.clamp(min=0)
            negative += row.clamp(max=0)
        draws = torch.rand(positive.shape, generator=self.generator, dtype=positive.dtype).to(positive.device)
        keep = draws.mul_(positive - negative) < positive
        leaks = [self.leak[task] for task in self.active.tolist()]
        if not any(leaks):
            return torch.where(keep, positive, negative)
        update = torch.zeros_like(positive)
        for row, leak in zip(jacobian, leaks, strict=True):
            kept = torch.where(keep, row.clamp(min=0), row.clamp(max=0))
            update += torch.lerp(kept, row, leak)
        return update
