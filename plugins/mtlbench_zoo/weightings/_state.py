"""Kinds of state that several weightings keep, all in buffers so that a resumed run goes on exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtlbench.contracts import Task, Weighting
from mtlbench.errors import MtlbenchError

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
        steps = self.steps[active] + 1
        first = 0.9 * self.first[active] + 0.1 * gradient
        second = 0.999 * self.second[active] + 0.001 * gradient**2
        self.steps[active], self.first[active], self.second[active] = steps, first, second
        size = (second / (1 - 0.999**steps)).sqrt() + 1e-8
        return -self.learning_rate * first / (1 - 0.9**steps) / size


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

    def shares(self) -> NDArray[np.float64]:
        """Return the weights of the active tasks, divided by their sum."""
        weights: NDArray[np.float64] = self.weights[self.active].numpy()
        mass = weights.sum()
        return weights / mass if mass > 0 else np.full(len(weights), 1 / len(weights))

    def keep(self, shares: NDArray[np.float64]) -> Tensor:
        """Let the active tasks divide the weight that they have together like this; return ``shares``."""
        answer = torch.from_numpy(shares)
        self.weights[self.active] = self.weights[self.active].sum() * answer
        return answer


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
