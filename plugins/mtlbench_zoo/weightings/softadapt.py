"""SoftAdapt."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from mtlbench.contracts import Task
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.weightings._nonnegative import NonnegativeLosses, RecentMeans, like, softmax


class SoftAdapt(NonnegativeLosses):
    """SoftAdapt: a softmax of the slopes of the losses.

    Minimises  sum_t w_t L_t  with  w_t = a_t exp(beta s_t) / sum_r a_r exp(beta s_r),  where the slope s_t is
    the mean loss of the last epoch less that of the epoch before it, so that a loss which falls slowly or
    rises counts more. In the first two epochs the weights are 1/T.

    beta: any finite number; above 0 it favours the worst slopes, below 0 the best. The paper's is 0.1.
    normalize: divide the slopes by sum_r |s_r|, which makes the weights the same for losses scaled alike.
    loss_weighted: a_t is the last mean loss, the paper's loss-weighted variant; otherwise a_t = 1.
    Both off is the original variant; only the first on, the normalised one; both on is the default of the
    authors' first code (version 0.0.3).
    window: None for means over epochs; a number n for means over the last n steps and the n before them.
    Source: Heydari, Thompson & Mehmood, 2019, arXiv:1912.12355, section 3.1.
    Heads: weighted. The weights sum to 1.
    Losses: >= 0. Where a mean is not known (a task without labels) s_t = 0 and a_t is the mean of the
    others'; where all last means are 0, a_t = 1. A negative loss ends the run with an error.
    Deviations: slopes are differences of two means; the authors' code takes finite differences of up to
    fifth order over single stored values, and its later version divides by the signed sum of the slopes,
    which turns all signs round when most losses fall. The paper's formulas were checked against the code of
    its authors, not against its text.
    """

    properties: ClassVar[frozenset[str]] = frozenset({"permutation-equivariant", "scale-free"})

    def __init__(
        self,
        tasks: Sequence[Task],
        beta: float = 0.1,
        normalize: bool = True,
        loss_weighted: bool = True,
        window: int | None = None,
    ) -> None:
        super().__init__(tasks)
        if not math.isfinite(beta):
            raise MtlbenchError(f"softadapt: beta must be a finite number, got {beta}")
        self.beta, self.normalize, self.loss_weighted = beta, normalize, loss_weighted
        if not normalize:
            vars(self)["properties"] = self.properties - {"scale-free"}
        self.recent = RecentMeans("softadapt", len(tasks), window)

    def forward(self, losses: Tensor) -> Tensor:
        """Return the weights ``[T]`` for the losses ``[T]``."""
        self.recent.step(losses, self.active)
        _, means = self.recall(losses, self.recent())
        earlier, later = ([mean[i] for i in self.places] for mean in means)
        slopes = [after - before for before, after in zip(earlier, later, strict=True)]
        slopes = [slope if math.isfinite(slope) else 0.0 for slope in slopes]
        if self.normalize:
            length = max(sum(map(abs, slopes)), sys.float_info.min)
            slopes = [slope / length for slope in slopes]
        weights = softmax([self.beta * slope for slope in slopes])
        known = [mean for mean in later if math.isfinite(mean)]
        if self.loss_weighted and known and any(map(math.isfinite, earlier)):
            usual = sum(known) / len(known)
            factors = [mean if math.isfinite(mean) else usual for mean in later]
            weighted = [weight * factor for weight, factor in zip(weights, factors, strict=True)]
            if (total := sum(weighted)) > 0:
                weights = [weight / total for weight in weighted]
        return like(weights, losses)

    def after_epoch(self, losses: Tensor) -> None:
        """Take the epoch's mean losses ``[T]``."""
        self.recent.epoch(losses)
