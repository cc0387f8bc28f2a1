"""Gradient vaccine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from mtlbench.contracts import Need, Task
from mtlbench.errors import MtlbenchError
from mtlbench.solvers.surgery import Array, vaccinate
from mtlbench_zoo.weightings._state import MeetingState


class GradVac(MeetingState):
    """Gradient vaccine: task gradients are brought to the similarity that they usually have.

    Each task i meets the other tasks j in a random order. Where the cosine phi of g_i and g_j is below its
    target phi*, a multiple of g_j is added that brings it there:
    g_i <- g_i + g_j |g_i| (phi* sqrt(1 - phi^2) - phi sqrt(1 - phi*^2)) / (|g_j| sqrt(1 - phi*^2)).
    Then the target follows:  phi* <- (1 - beta) phi* + beta phi.  Targets start at 0, so that the first step
    is PCGrad's. The update is the sum of all g_i, computed on coefficients from the Gram matrix.

    beta: how fast targets follow, 0 to 1. The paper has 0.01, the default; LibMTL and TorchJD have 0.5.
    blocks: what has cosines, targets and weights in common: the whole "model" (the default), each "layer"
    (the parameters that one module holds itself) or each "matrix" (every parameter by itself). They are the
    paper's whole_model, all_layer and all_matrix. Its enc_dec is "model" here, where what tasks share is the
    encoder. Tasks meet in the same order in every block.
    Source: Wang, Tsvetkov, Firat & Cao, ICLR 2021, arXiv:2010.05874, equations 4 and 5 and algorithm 1.
    Heads: unweighted. The update is a sum, like equal weighting's; no weight is below 1.
    Deviations: a target counts as 1 - 1e-6 at most, since a cosine of 1 takes an
    infinite multiple. A gradient of length 0, or one that others cancelled, has no cosine and changes neither
    gradients nor targets (LibMTL gets NaN there, for ever). Targets of tasks without a label rest.
    """

    needs = Need.GRAM
    heads = "unweighted"
    properties: ClassVar[frozenset[str]] = frozenset({"scale-free"})

    targets: Tensor

    def __init__(
        self,
        tasks: Sequence[Task],
        beta: float = 0.01,
        blocks: Literal["model", "layer", "matrix"] = "model",
    ) -> None:
        super().__init__(tasks)
        if not 0 <= beta <= 1:
            raise MtlbenchError(f"gradvac: beta must be from 0 to 1, got {beta}")
        self.beta = beta
        self.blocks = blocks
        # How many layers there are is known when the first gradients come; a checkpoint brings its number.
        count = 1 if blocks == "model" else 0
        self.register_buffer("targets", torch.zeros(count, len(tasks), len(tasks), dtype=torch.float64))

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Return weights ``[T]`` for the Gram matrix ``[T, T]`` (float64), ``[K, T]`` for ``[K, T, T]``."""
        products, targets = gram.numpy(), self.targets.numpy()
        draws = self.draws(products.shape[-1])
        if not len(targets):
            targets = np.zeros((products[..., 0, 0].size, *targets.shape[1:]))
            self.targets = torch.from_numpy(targets)
        if products.ndim == 2:
            return torch.from_numpy(self._block(products, draws, targets[0]))
        each = [self._block(block, draws, targets[k]) for k, block in enumerate(products)]
        return torch.from_numpy(np.stack(each))

    def _block(self, products: Array, draws: Array, targets: Array) -> Array:
        """Return the weights of one block, whose ``targets`` then follow."""
        if len(products) == len(targets):
            return vaccinate(products, draws, targets, self.beta)
        pairs = np.ix_(active := self.active.numpy(), active)
        own = targets[pairs]
        weights = vaccinate(products, draws, own, self.beta)
        targets[pairs] = own
        return weights

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}targets")
        if saved is not None and saved.shape[1:] == self.targets.shape[1:]:
            self.targets = torch.empty_like(saved)
        super()._load_from_state_dict(state_dict, prefix, *args)
