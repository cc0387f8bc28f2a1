"""What bilevel weightings ask: how a step on one batch changes the losses of another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mtlbench.errors import RunFailedError
from mtlbench.gradients.gram import Gradient, Jacobian

Rows = Callable[[], tuple[list[Gradient], Tensor]]
"""Evaluates one batch where the model is: the gradient of each task by all parameters, and the losses [T]."""


class ModelLookahead:
    """Answers the questions of `mtlbench.contracts.Lookahead` about a model.

    parameters: all that are trained, in the order of the rows. buffers: what a forward pass may change, which
    is undone. rows: the training batch's gradients where the model is. train, held: evaluate a batch. look:
    gives the training batch's losses [T] where the model is, without gradients. rate: the learning rate of
    this step.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        buffers: Sequence[Tensor],
        rows: list[Gradient],
        train: Rows,
        held: Rows,
        look: Callable[[], Tensor],
        rate: float,
    ) -> None:
        self.rate = rate
        self.rows = rows
        self.held_rows: list[Gradient] = []
        self._parameters, self._buffers, self._train, self._held = parameters, buffers, train, held
        self._look = look

    def gram(self) -> Tensor:
        """See `mtlbench.contracts.Lookahead`; keeps the held-out gradients in ``held_rows``."""
        with self._restored():
            self.held_rows, losses = self._held()
        self._check(losses, "losses of the held-out batch are not finite")
        return Jacobian([*self.rows, *self.held_rows]).gram()

    def cross(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """See `mtlbench.contracts.Lookahead`."""
        with self._restored():
            self._descend(self.rows, steps)
            rows, losses = self._held()
        self._check(losses)
        return Jacobian(self.rows).products(Jacobian(rows)), losses.cpu().double()

    def losses(self, steps: Tensor, count: int) -> Tensor:
        """See `mtlbench.contracts.Lookahead`."""
        with self._restored():
            self._descend(self.rows, steps)
            for _ in range(count - 1):
                rows, losses = self._train()
                self._check(losses)
                self._descend(rows, steps)
            losses = self._look()
        self._check(losses)
        return losses.cpu().double()

    def _check(
        self,
        losses: Tensor,
        told: str = "a step ahead leads to losses that are not finite; make inner steps shorter",
    ) -> None:
        if not losses.isfinite().all():
            raise RunFailedError(told)

    @contextmanager
    def _restored(self) -> Iterator[None]:
        """Give the model back as it was; values are exchanged, not written over, so graphs stay valid."""
        values = [p.data for p in self._parameters]
        buffers = [b.clone() for b in self._buffers]
        try:
            yield
        finally:
            for parameter, value in zip(self._parameters, values, strict=True):
                parameter.data = value
            for buffer, before in zip(self._buffers, buffers, strict=True):
                buffer.copy_(before)

    def _descend(self, rows: list[Gradient], steps: Tensor) -> None:
        for parameter, parts in zip(self._parameters, zip(*rows, strict=True), strict=True):
            value = parameter.data
            for step, part in zip(steps.tolist(), parts, strict=True):
                if part is not None:
                    value = torch.add(value, part, alpha=-step)
            parameter.data = value
