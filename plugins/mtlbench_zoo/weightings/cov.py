"""Coefficient-of-variations weighting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from mtlbench.contracts import Task
from mtlbench_zoo.weightings._nonnegative import NonnegativeLosses, like

_EPSILON = 1e-8  # the official code's, added to the variance of ratios, which have no unit


class CoV(NonnegativeLosses):
    """Coefficient of variation: more weight for the losses that still vary.

    Minimises  sum_t w_t L_t  with  w_t = c_t / sum_r c_r,  c_t = sigma_t / mu_t,  the standard deviation over
    the mean of all loss ratios l_t seen so far, a loss ratio being the loss over the mean of all losses of
    the task before it (1 for the first). At a task's first two steps the weights are 1/T.

    Source: Groenendijk, Karaoglu, Gevers & Mensink, WACV 2021, arXiv:2009.01717.
    Heads: weighted. The weights sum to 1, and stay the same when all losses are scaled alike.
    Losses: >= 0. A loss ratio is 1 as long as all losses before were 0; a negative loss ends the run with an
    error.
    Deviations: the statistics are Welford's running ones over the whole run, in float64; the paper's other
    choice, decaying ones, is not here. As in the official code the variance is that of the population, plus
    1e-8, and a step's weights come from the steps before it.
    """

    properties: ClassVar[frozenset[str]] = frozenset({"permutation-equivariant", "scale-free"})

    count: Tensor
    loss_mean: Tensor
    ratio_mean: Tensor
    ratio_spread: Tensor

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        for name in ("count", "loss_mean", "ratio_mean", "ratio_spread"):
            self.buffer(name)

    def forward(self, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the losses ``[T]``, which enter the statistics after that."""
        states = [self.count, self.loss_mean, self.ratio_mean, self.ratio_spread]
        values, *rows = self.recall(losses, *states)
        counts, means, ratio_means, spreads = rows
        places = self.places
        weights = [1 / len(values)] * len(values)
        if min(counts[i] for i in places) >= 2:
            weights = [math.sqrt(spreads[i] / counts[i] + _EPSILON) / ratio_means[i] for i in places]
            total = sum(weights)
            weights = [weight / total for weight in weights]

        for i, value in zip(places, values, strict=True):
            ratio = value / means[i] if means[i] > 0 else 1.0
            counts[i] += 1
            means[i] += (value - means[i]) / counts[i]
            distance = ratio - ratio_means[i]
            ratio_means[i] += distance / counts[i]
            spreads[i] += distance * (ratio - ratio_means[i])
        self.keep(states, rows)
        return like(weights, losses)
