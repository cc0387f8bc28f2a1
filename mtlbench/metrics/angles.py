"""Metrics of directions, such as surface normals: the angle between output and target, in degrees.

Outputs and targets are ``[B, 3, ...]``; lengths play no part. A target with a NaN among its three values has
no label and is ignored. An output of length 0 points nowhere and counts as 90 degrees off. All of these read
one histogram with bins of 0.01 degrees and one sum, so that memory does not grow with the split. With no
label at all a score is ``float("nan")``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torchmetrics
from torch import Tensor

from mtlbench.contracts import Metric, labelled

BINS_PER_DEGREE = 100
BINS = 180 * BINS_PER_DEGREE

Score = Callable[[Tensor, Tensor], Tensor]


class AngleScore(torchmetrics.Metric):
    """``score(histogram, sum)`` of the angles; histogram float64 ``[BINS]``, sum in degrees."""

    full_state_update = False
    histogram: Tensor
    total: Tensor

    def __init__(self, score: Score) -> None:
        super().__init__()
        self.score = score
        self.add_state("histogram", torch.zeros(BINS, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Count the angles of a batch of vectors ``[B, 3, ...]``."""
        known = labelled(target).all(1)
        angles = angle(output.float(), target.float())[known]
        places = (angles * BINS_PER_DEGREE).long().clamp(0, BINS - 1)
        self.histogram += torch.bincount(places.cpu(), minlength=BINS).to(self.histogram)
        self.total += angles.sum(dtype=torch.float64)

    def compute(self) -> Tensor:
        """Return the score, a float64 scalar."""
        return self.score(self.histogram.cpu().double(), self.total.cpu())


def angle(output: Tensor, target: Tensor) -> Tensor:
    """Return the angles in degrees ``[B, ...]`` between vectors ``[B, 3, ...]``, exact for small ones too."""
    (ax, ay, az), (bx, by, bz) = output.unbind(1), target.unbind(1)
    dot = ax * bx + ay * by + az * bz
    # An arc cosine in float32 would see angles below 0.02 degrees as 0.
    across = torch.hypot(torch.hypot(ay * bz - az * by, az * bx - ax * bz), ax * by - ay * bx)
    degrees = torch.atan2(across, dot).rad2deg()
    return torch.where(output.square().sum(1) > 0, degrees, 90.0)


def _mean(histogram: Tensor, total: Tensor) -> Tensor:
    return total / histogram.sum()


def _median(histogram: Tensor, total: Tensor) -> Tensor:
    """Return where half of the angles lie below, as if those of a bin were spread evenly over it."""
    below = histogram.cumsum(0)
    half = below[-1] / 2
    if half == 0:
        return half / 0
    place = int(torch.searchsorted(below, half))
    share = (half - (below[place] - histogram[place])) / histogram[place]
    return (place + share) / BINS_PER_DEGREE


def _within(limit: float, histogram: Tensor, total: Tensor) -> Tensor:
    return histogram[: round(limit * BINS_PER_DEGREE)].sum() / histogram.sum()


def angle_mean() -> Metric:
    """Mean angle, in degrees."""
    return Metric("angle_mean", partial(AngleScore, _mean), False, unit="deg", state="angles")


def angle_median() -> Metric:
    """Median angle, in degrees; right to the 0.01 degrees of a bin."""
    return Metric("angle_median", partial(AngleScore, _median), False, unit="deg", state="angles")


def angle_within(limit: float) -> Metric:
    """Share of the angles below ``limit`` degrees, in 0..1; limits are multiples of 0.01."""
    name = f"within_{limit:g}"
    return Metric(name, partial(AngleScore, partial(_within, limit)), True, state="angles")
