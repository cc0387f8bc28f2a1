"""Metrics of real values: means over all labelled elements of a split, in constant memory.

Outputs and targets are of one shape; NaN in the target means no label. With no label at all a score is
``float("nan")``. A map of the wrong shape is refused, never broadcast.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torchmetrics
from torch import Tensor

from mtlbench.contracts import Metric, labelled
from mtlbench.errors import MtlbenchError

Error = Callable[[Tensor, Tensor], Tensor]


class MeanError(torchmetrics.Metric):
    """``finish`` of the mean of ``error(output, target)`` over the labelled elements; sums are float64."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, error: Error, finish: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.error, self.finish = error, finish
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch of outputs and targets ``[B, ...]``."""
        if output.shape != target.shape:
            raise MtlbenchError(
                f"a target of shape {tuple(target.shape)} cannot be compared with an output of shape "
                f"{tuple(output.shape)}"
            )
        known = labelled(target)
        errors = self.error(output.float(), target.float())
        self.total += torch.where(known, errors, 0).sum(dtype=torch.float64)
        self.count += known.sum()

    def compute(self) -> Tensor:
        """Return the score, a float64 scalar."""
        return self.finish(self.total / self.count)


def _absolute(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).abs()


def _relative(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).abs() / target.abs()


def _squared(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square()


def _times(factor: float, mean: Tensor) -> Tensor:
    return mean * factor


def _root_times(factor: float, mean: Tensor) -> Tensor:
    return mean.sqrt() * factor


def _decibels(mean: Tensor) -> Tensor:
    return -10 * mean.clamp(min=1e-12).log10()


def _metric(name: str, error: Error, finish: Callable[[Tensor], Tensor], unit: str) -> Metric:
    make = partial(MeanError, error, finish)
    return Metric(name, make, higher_is_better=False, unit=unit, state=error.__name__)


def abs_error(unit: str = "1") -> Metric:
    """Mean absolute difference over the labelled elements, in the target's ``unit``."""
    return _metric("abs_error", _absolute, partial(_times, 1.0), unit)


def rel_error() -> Metric:
    """Mean of |output - target| / |target| over the labelled elements; targets must not be 0."""
    return _metric("rel_error", _relative, partial(_times, 1.0), "1")


def mae(unit: str = "1", scale: float = 1.0) -> Metric:
    """Mean absolute error times ``scale``: what one unit of a standardised target stands for."""
    return _metric("mae", _absolute, partial(_times, scale), unit)


def mse() -> Metric:
    """Mean squared error."""
    return _metric("mse", _squared, partial(_times, 1.0), "1")


def psnr() -> Metric:
    """Peak signal-to-noise ratio 10 log10(1 / MSE) of values in 0..1, in dB; at most 120.

    Of the mean squared error of the whole split, and no mean over images, so that it says the same as `mse`.
    """
    make = partial(MeanError, _squared, _decibels)
    return Metric("psnr", make, higher_is_better=True, unit="dB", state=_squared.__name__)


def rmse(unit: str = "1", scale: float = 1.0) -> Metric:
    """Root of the mean squared error, times ``scale`` as in `mae`."""
    return _metric("rmse", _squared, partial(_root_times, scale), unit)
