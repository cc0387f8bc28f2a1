"""Gradient vaccine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mtlbench.contracts import Need, Task, Weighting
from mtlbench.errors import MtlbenchError
from mtlbench.solvers.surgery import vaccinate
from mtlbench_zoo.weightings.pcgrad import partner_order


class GradVac(Weighting):
    """Gradient vaccine: task gradients are brought to the similarity that they usually have.

    Each task i meets the other tasks j in a random order. Where the cosine phi of g_i and g_j is below its
    target phi*, a multiple of g_j is added that brings it there:
    g_i <- g_i + g_j |g_i| (phi* sqrt(1 - phi^2) - phi sqrt(1 - phi*^2)) / (|g_j| sqrt(1 - phi*^2)).
    Then the target follows:  phi* <- (1 - beta) phi* + beta phi.  Targets start at 0, so that the first step
    is PCGrad's. The update is the sum of all g_i, computed on coefficients from the Gram matrix.

    beta: how fast targets follow, 0 to 1. The paper has 0.01, the default; LibMTL and TorchJD have 0.5.
    Source: Wang, Tsvetkov, Firat & Cao, ICLR 2021, arXiv:2010.05874, equations 4 and 5 and algorithm 1.
    Heads: unweighted. The update is a sum, like equal weighting's; no weight is below 1.
    Deviations: the whole model is one parameter group (the paper also has one per layer, its "all_layer",
    which needs Gram matrices by block). A target counts as 1 - 1e-6 at most, since a cosine of 1 takes an
    infinite multiple. A gradient of length 0, or one that others cancelled, has no cosine and changes neither
    gradients nor targets (LibMTL gets NaN there, for ever). Targets of tasks without a label rest.
    """

    needs = Need.GRAM
    heads = "unweighted"
    properties: ClassVar[frozenset[str]] = frozenset({"scale-free"})

    targets: Tensor

    def __init__(self, tasks: Sequence[Task], beta: float = 0.01) -> None:
        super().__init__(tasks)
        if not 0 <= beta <= 1:
            raise MtlbenchError(f"gradvac: beta must be from 0 to 1, got {beta}")
        self.beta = beta
        self.register_buffer("targets", torch.zeros(len(tasks), len(tasks), dtype=torch.float64))

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the Gram matrix ``[T, T]`` (float64)."""
        pairs = self.active[:, None], self.active
        order = partner_order(len(gram), self.generator)
        products = gram.numpy()
        weights, targets = vaccinate(products, order, self.targets[pairs].numpy(), self.beta)
        self.targets[pairs] = torch.from_numpy(targets)
        return torch.from_numpy(weights)
