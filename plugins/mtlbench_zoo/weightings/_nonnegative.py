"""What weightings share that take ratios or logarithms of losses."""

from __future__ import annotations

from collections.abc import Sequence

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
        values = losses.detach().double()
        if bool((values < 0).any()):
            worst = int(values.argmin())
            raise RunFailedError(
                f"{type(self).__name__} takes losses >= 0, but the loss of"
                f" {self.task_names[int(self.active[worst])]} is {float(values[worst]):g};"
                " use a loss that is never negative, or another weighting, such as ew"
            )
        return values

    def buffer(self, name: str, value: float = 0.0, rows: tuple[int, ...] = ()) -> None:
        """Register a float64 buffer ``[*rows, T]`` filled with ``value``, a part of the checkpoint."""
        shape = (*rows, len(self.task_names))
        self.register_buffer(name, torch.full(shape, value, dtype=torch.float64))


def inverse(values: Tensor) -> Tensor:
    """Return ``1 / values``, and 0 for a value of 0: a task without a loss has nothing to learn."""
    return torch.where(values > 0, 1 / values, 0)


def like(weights: Tensor, losses: Tensor) -> Tensor:
    """Return float64 weights in the dtype of the losses, cut where they leave its range."""
    return weights.clamp(max=torch.finfo(losses.dtype).max).to(losses.dtype)


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

    def step(self, values: Tensor, active: Tensor) -> None:
        """Take the losses of one step, float64 ``[T_active]``."""
        if self.window is not None:
            row = torch.full_like(self.history[0], torch.nan)
            row[active] = values
            self._push(row)

    def epoch(self, losses: Tensor) -> None:
        """Take the mean losses of one epoch, float64 ``[T]``."""
        if self.window is None:
            self._push(losses.to(self.history))

    def _push(self, row: Tensor) -> None:
        self.history.copy_(self.history.roll(-1, 0))
        self.history[-1] = row
        self.rows += 1

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the earlier and the later means ``[T]``; NaN where there is none, or not enough yet."""
        earlier, later = self.history.view(2, -1, self.history.shape[1]).nanmean(1)
        return torch.where(self.rows < len(self.history), torch.nan, earlier), later
