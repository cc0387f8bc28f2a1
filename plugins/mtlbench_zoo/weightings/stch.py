"""Smooth Tchebycheff scalarisation."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mtlbench.contracts import Task
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.weightings._nonnegative import NonnegativeLosses, inverse, like, softmax


class STCH(NonnegativeLosses):
    """Smooth Tchebycheff scalarisation: a smooth maximum of the logarithms of the losses.

    Minimises  T mu log sum_t exp(log(L_t / n_t) / mu),  that is w_t = T softmax_t(log(L_t / n_t) / mu) / L_t,
    where the nadir n_t is the mean loss of the epoch with the number ``warmup``, counted from 0. Up to the
    end of that epoch it minimises  sum_t log L_t,  that is w_t = 1 / L_t; the two agree where L = n.

    mu: > 0; the smaller, the more the task that is furthest above its nadir takes all. The official code's
    is 1.
    warmup: epochs before the one in which the nadir is measured, >= 0. The official code's is 4, so that
    five epochs pass before the scalarisation is used; a shorter run never gets there.
    Source: Lin et al., ICML 2024, arXiv:2402.19078, and its code for multi-task learning (STCH_MTL), which
    gives the logarithms, the nadir and the factor T.
    Heads: weighted. The weights have no fixed sum; weighted losses sum to T. Losses of other units give the
    same update.
    Losses: >= 0. One of exactly 0 gets weight 0; a negative one ends the run with an error. A task whose
    nadir is 0, or which had no label in that epoch, counts as one at its nadir until a later epoch gives it.
    Deviations: preferences are equal and the ideal point is 0, as in the official code. That code adds 1e-20
    to losses and ratios; here softmax works on logarithms and needs no such term.
    """

    properties: ClassVar[frozenset[str]] = frozenset({"permutation-equivariant"})

    epochs: Tensor
    nadir: Tensor

    def __init__(self, tasks: Sequence[Task], mu: float = 1.0, warmup: int = 4) -> None:
        super().__init__(tasks)
        if not 0 < mu < math.inf:
            raise MtlbenchError(f"stch: mu must be a finite number > 0, got {mu}")
        if warmup < 0:
            raise MtlbenchError(f"stch: warmup must be a number of epochs >= 0, got {warmup}")
        self.mu, self.warmup = mu, warmup
        self.buffer("nadir", torch.nan)
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))

    def forward(self, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the losses ``[T]``."""
        values, nadir = self.recall(losses, self.nadir)
        # Until it is measured the nadir is NaN, and all shares are alike.
        heights = [
            math.log(max(value, sys.float_info.min)) - math.log(nadir[i]) if nadir[i] > 0 else 0.0
            for i, value in zip(self.places, values, strict=True)
        ]
        shares = softmax([height / self.mu for height in heights])
        pairs = zip(shares, values, strict=True)
        return like([len(values) * share * inverse(value) for share, value in pairs], losses)

    def after_epoch(self, losses: Tensor) -> None:
        """Take the epoch's mean losses ``[T]``: the nadir, where it is due."""
        if int(self.epochs) >= self.warmup:
            self.nadir.copy_(self.nadir.where(self.nadir > 0, losses.to(self.nadir)))
        self.epochs += 1
