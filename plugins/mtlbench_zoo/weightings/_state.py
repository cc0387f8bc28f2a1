"""Kinds of state that several weightings keep, all in buffers so that a resumed run goes on exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtlbench.compiled import compiled
from mtlbench.contracts import Task, Weighting
from mtlbench.errors import MtlbenchError

Array = NDArray[np.float64]

BLOCK = 1 << 19
"""Elements of a block of `columns`."""


class Adam(nn.Module):
    """Adam (arXiv:1412.6980) for ``count`` values of which only some may be active in a step."""

    first: Tensor
    second: Tensor
    steps: Tensor

    def __init__(self, count: int, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        for name in ("first", "second", "steps"):
            self.register_buffer(name, torch.zeros(count, dtype=torch.float64))

    def forward(self, active: Tensor, gradient: Tensor) -> Tensor:
        """Return what to add to the ``active`` values, whose ``gradient`` (float64) is given."""
        state = [self.first, self.second, self.steps]
        numbers = [each.numpy(force=True) for each in (*state, active, gradient)]
        change = adam_step(self.learning_rate, *numbers)
        if not self.first.is_cpu:
            for each, moved in zip(state, numbers, strict=False):
                each.copy_(torch.from_numpy(moved))
        return torch.from_numpy(change).to(gradient)


@compiled()
def adam_step(
    rate: float, first: Array, second: Array, steps: Array, active: NDArray[np.int64], gradient: Array
) -> Array:
    """Return what `Adam` adds to the active values; its state, arrays ``[count]``, moves in its place."""
    change = np.empty(len(active))
    for i in range(len(active)):
        t = active[i]
        steps[t] += 1
        first[t] = 0.9 * first[t] + 0.1 * gradient[i]
        second[t] = 0.999 * second[t] + 0.001 * gradient[i] ** 2
        size = np.sqrt(second[t] / (1 - 0.999 ** steps[t])) + 1e-8
        change[i] = -rate * first[t] / (1 - 0.9 ** steps[t]) / size
    return change


class GradientState(Weighting):
    """A Jacobian weighting that keeps a vector as long as the gradient for every task: ``running`` [T, P].

    P is known when the first gradient comes, so that the buffer has no columns until then; a checkpoint
    brings its own size.
    """

    running: Tensor

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.register_buffer("running", torch.empty(len(tasks), 0))

    def grow(self, jacobian: Tensor) -> None:
        """Make ``running`` fit the rows of ``jacobian``, zeros at first. Raises where they changed length."""
        count, width = self.running.shape
        if not width:
            self.running = jacobian.new_zeros(count, jacobian.shape[1])
        elif width != jacobian.shape[1]:
            raise MtlbenchError(
                f"{type(self).__name__} follows each task's gradient from step to step, but its length"
                f" changed from {width} to {jacobian.shape[1]}: use --grad parameters, where it is constant"
            )

    def rows(self) -> Tensor:
        """Return ``running`` of the active tasks, as it is where all are; else `keep` must follow."""
        return self.running if len(self.active) == len(self.running) else self.running[self.active]

    def keep(self, rows: Tensor) -> None:
        """Let ``running`` of the active tasks be ``rows``."""
        if rows is not self.running:
            self.running[self.active] = rows

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}running")
        if saved is not None and len(saved) == len(self.running):
            self.running = torch.empty_like(saved, device=self.running.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


class SimplexState(Weighting):
    """A weighting that moves weights on the simplex from step to step: ``weights`` [T], even at first.

    Tasks without a label in the batch keep their weight; the others share what they have together.
    """

    weights: Tensor

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.register_buffer("weights", torch.full((len(tasks),), 1 / len(tasks), dtype=torch.float64))

    def shares(self) -> Array:
        """Return the weights of the active tasks, divided by their sum."""
        return _shares(self.weights.numpy(), self.active.numpy())

    def keep(self, shares: Array) -> Tensor:
        """Let the active tasks divide the weight that they have together like this; return ``shares``."""
        _divide(self.weights.numpy(), self.active.numpy(), shares)
        return torch.from_numpy(shares)


@compiled()
def _shares(weights: Array, active: NDArray[np.int64]) -> Array:
    own = weights[active]
    mass = own.sum()
    return own / mass if mass > 0 else np.full(len(own), 1 / len(own))


@compiled()
def _divide(weights: Array, active: NDArray[np.int64], shares: Array) -> None:
    mass = weights[active].sum()
    for i in range(len(active)):
        weights[active[i]] = mass * shares[i]


def columns(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut matrices [T, P] into blocks of columns, as views, that stay in the cache between two uses."""
    count, length = matrices[0].shape
    width = BLOCK // max(count, 1)
    for start in range(0, length, width):
        yield tuple(matrix[:, start : start + width] for matrix in matrices)


def squares(rows: Tensor) -> Tensor:
    """Return the squared lengths of ``rows`` [T, P], float64 [T] on their device."""
    return torch.stack([row.dot(row) for row in rows]).double()


def squared_without_loss(squares: Tensor) -> bool:
    """Return whether squares and their parts are well inside of what float32 can hold."""
    return bool(((squares > 1e-24) & (squares < 1e30)).all())
