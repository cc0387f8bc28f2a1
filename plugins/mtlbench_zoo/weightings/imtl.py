"""Impartial multi-task learning: losses and gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlbench.contracts import Need, Task, Weighting
from mtlbench.errors import MtlbenchError
from mtlbench.solvers.imtl_g import impartial_weights
from mtlbench_zoo.weightings._state import Adam

_LARGEST = 50.0


class IMTL(Weighting):
    """IMTL: IMTL-L brings all losses to one scale, IMTL-G balances the gradients of the scaled losses.

    The scaled losses are  exp(s_t) L_t - s_t;  each s_t goes down their derivative exp(s_t) L_t - 1, so that
    exp(s_t) follows 1 / L_t. The weights are  w_t = a_t exp(s_t)  with a the weights of `imtl-g` for the
    gradients exp(s_t) g_t, sum(a) = 1. Since IMTL-G ignores lengths, s changes the update's length, not its
    direction.

    learning_rate: of s, which starts at 0 and takes one step of Adam after each answer, from its own state.
    Source: Liu et al., "Towards impartial multi-task learning", ICLR 2021, sections 3.1 and 3.2.
    Heads: exp(s_t) times their gradient, that of the scaled loss. The weights have no fixed sum.
    Deviations: in LibMTL s is stepped by the network's optimiser with its learning rate and weight decay. s
    stays within -50 and 50. Degenerate gradients are treated as in `imtl-g`. ``--scale`` is of the weights of
    shared parameters, not of the heads'.
    """

    needs = Need.GRAM
    heads = "own"
    properties = frozenset({"permutation-equivariant"})

    log_scale: Tensor

    def __init__(self, tasks: Sequence[Task], learning_rate: float = 1e-3) -> None:
        super().__init__(tasks)
        if not 0 <= learning_rate < float("inf"):
            raise MtlbenchError(f"imtl: learning_rate must be a number >= 0, got {learning_rate}")
        self.register_buffer("log_scale", torch.zeros(len(tasks), dtype=torch.float64))
        self.adam = Adam(len(tasks), learning_rate)

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the Gram matrix ``[T, T]`` (float64) and the losses ``[T]``."""
        log_scale = self.log_scale[self.active]
        scale = log_scale.exp()
        self.head_weights = scale
        scaled = gram * scale.outer(scale)
        weights = torch.from_numpy(impartial_weights(scaled.numpy())) * scale
        change = self.adam(self.active, scale * losses.double() - 1)
        self.log_scale[self.active] = (log_scale + change).clamp(-_LARGEST, _LARGEST)
        return weights
