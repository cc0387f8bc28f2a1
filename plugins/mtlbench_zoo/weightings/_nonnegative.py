"""What weightings share that take ratios or logarithms of losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.contracts import Need, Task, Weighting
from mtlbench.errors import MtlbenchError, RunFailedError


class NonnegativeLosses(Weighting):
    """A weighting of losses that may not be negative: it takes their ratios or logarithms."""

    needs = Need.LOSSES

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.task_names = [task.name for task in tasks]

    def read(self, losses: Tensor) -> Tensor:
        """Return the losses ``[T]`` as float64 without their graph. Raises `RunFailedError` for one < 0."""
        self.recall(losses)
        return losses.detach().double()

    def recall(self, losses: Tensor, *states: Tensor) -> list[Any]:
        """Return the losses ``[T_active]`` and each of ``states`` as (nested) lists of plain floats.

        Of a handful of numbers plain arithmetic is faster than tensors are. From a device they come in one
        piece, so that it is waited for once. Raises `RunFailedError` for a loss < 0.
        """
        asked = [losses.detach(), *states]
        if losses.device.type != "cpu":
            joined = torch.cat([tensor.flatten() for tensor in asked]).cpu()
            pieces = torch.split(joined, [tensor.numel() for tensor in asked])
            asked = [piece.view_as(tensor) for piece, tensor in zip(pieces, asked, strict=True)]
        found = [tensor.tolist() for tensor in asked]
        for place, value in enumerate(found[0]):
            if value < 0:
                raise RunFailedError(
                    f"{type(self).__name__} takes losses >= 0, but the loss of"
                    f" {self.task_names[self.places[place]]} is {value:g};"
                    " use a loss that is never negative, or another weighting, such as ew"
                )
        return found

    @property
    def places(self) -> Sequence[int]:
        """The indices of the active tasks."""
        places: list[int] = self.active.tolist()
        return places

    def keep(self, states: Sequence[Tensor], rows: Sequence[Sequence[float]]) -> None:
        """Write ``rows``, each ``[T]``, into the buffers ``states``. No device is waited for."""
        for state, row in zip(states, rows, strict=True):
            state.copy_(torch.tensor(row, dtype=state.dtype), non_blocking=True)

    def buffer(self, name: str, value: float = 0.0, rows: tuple[int, ...] = ()) -> None:
        """Register a float64 buffer ``[*rows, T]`` filled with ``value``, a part of the checkpoint."""
        shape = (*rows, len(self.task_names))
        self.register_buffer(name, torch.full(shape, value, dtype=torch.float64))


def inverse(value: float) -> float:
    """Return ``1 / value``, and 0 for a value of 0: a task without a loss has nothing to learn."""
    return 1 / value if value > 0 else 0.0


def softmax(scores: Sequence[float]) -> list[float]:
    """Return ``exp(scores)`` over their sum."""
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]


def like(weights: Sequence[float], losses: Tensor) -> Tensor:
    """Return weights as a tensor like the losses, cut where they leave its range. No device is waited for."""
    largest = torch.finfo(losses.dtype).max
    cut = torch.tensor([min(weight, largest) for weight in weights], dtype=losses.dtype)
    return cut.to(losses.device, non_blocking=True)


class RecentMeans(nn.Module):
    """The mean losses of the last two epochs, or of the last two windows of ``window`` steps.

    history: float64 ``[2 n, T]``, the latest row last, NaN where a task had no label; n is ``window``, or 1
    with a row for each epoch.
    """

    history: Tensor
    rows: Tensor

    def __init__(self, method: str, tasks: int, window: int | None) -> None:
        super().__init__()
        if window is not None and window < 1:
            raise MtlbenchError(f"{method}: window must be a number of steps >= 1, or None, got {window}")
        self.window = window
        rows = 2 * (window or 1)
        self.register_buffer("history", torch.full((rows, tasks), torch.nan, dtype=torch.float64))
        self.register_buffer("rows", torch.zeros((), dtype=torch.int64))

    def step(self, losses: Tensor, active: Tensor) -> None:
        """Take the losses of one step, ``[T_active]``."""
        if self.window is not None:
            row = torch.full_like(self.history[0], torch.nan)
            row[active] = losses.detach().to(row)
            self._push(row)

    def epoch(self, losses: Tensor) -> None:
        """Take the mean losses of one epoch, float64 ``[T]``."""
        if self.window is None:
            self._push(losses.to(self.history))

    def _push(self, row: Tensor) -> None:
        self.history.copy_(self.history.roll(-1, 0))
        self.history[-1] = row
        self.rows += 1

    def forward(self) -> Tensor:
        """Return the earlier and the later means ``[2, T]``; NaN where there is none, or not enough yet."""
        if self.window is None:
            return self.history
        means = self.history.view(2, -1, self.history.shape[1]).nanmean(1)
        means[0] = torch.where(self.rows < len(self.history), torch.nan, means[0])
        return means
