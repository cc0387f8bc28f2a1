"""Jacobians that a weighting must cope with: ordinary, degenerate, huge and tiny ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Matrix:
    """Task gradients with their losses.

    name: for messages. jacobian: ``J`` ``[T, P]``, float32 or float64. losses: ``[T]``, positive, of the
    same dtype.
    """

    name: str
    jacobian: Tensor
    losses: Tensor

    @property
    def count(self) -> int:
        """Return the number of tasks, T."""
        return len(self.losses)

    @cached_property
    def gram(self) -> Tensor:
        """``J Jᵀ`` ``[T, T]`` in float64."""
        jacobian = self.jacobian.double().numpy()
        return torch.from_numpy(jacobian @ jacobian.T)

    @cached_property
    def held_out(self) -> Tensor:
        """The gradients of another batch, float64 ``[T, P]``: each row made of that row of J alone."""
        jacobian = self.jacobian.double()
        return jacobian + 0.7 * jacobian.roll(1, dims=1)

    @cached_property
    def cross(self) -> Tensor:
        """``J J'ᵀ`` ``[T, T]`` in float64 with the gradients J' of another batch: not symmetric."""
        return self.jacobian.double() @ self.held_out.T

    def times(self, factor: float) -> Matrix:
        """Return what it becomes when all losses are multiplied by ``factor``."""
        name = f"{self.name}, losses x {factor:g}"
        return Matrix(name, self.jacobian * factor, self.losses * factor)

    def with_gram(self, gram: Tensor) -> Matrix:
        """Return the same with another Gram matrix, ``[T, T]``."""
        made = Matrix(f"{self.name}, another Gram matrix", self.jacobian, self.losses)
        vars(made)["gram"] = gram
        return made

    def pick(self, tasks: Tensor) -> Matrix:
        """Return the rows of ``tasks`` (int64), in that order."""
        return Matrix(f"{self.name}, tasks {tasks.tolist()}", self.jacobian[tasks], self.losses[tasks])


class LinearLookahead:
    """What a `BILEVEL` method asks, of tasks whose losses are linear: all answers are known exactly."""

    rate = 1e-3

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix

    def gram(self) -> Tensor:
        """See `mtlbench.contracts.Lookahead`."""
        both = torch.cat([self.matrix.jacobian.double(), self.matrix.held_out])
        return both @ both.T

    def cross(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """See `mtlbench.contracts.Lookahead`; the held-out losses are positive, as losses are."""
        return self.matrix.cross, self.matrix.losses.double() * 1.5

    def losses(self, steps: Tensor, count: int) -> Tensor:
        """See `mtlbench.contracts.Lookahead`."""
        return self.matrix.losses.double() - count * (self.matrix.gram @ steps)


def matrix_zoo() -> Iterator[Matrix]:
    """Yield the zoo: the same matrices in the same order at every call.

    T from 1 to 40; conflicting and aligned gradients of unequal lengths; zero, one zero row, identical,
    parallel, opposite, orthogonal, rank one, affinely dependent, more tasks than parameters; condition
    numbers to 1e12 of ``J Jᵀ`` and of ``J``; scales from 1e-20 to 1e20; float64, some in float32 too.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    def named(name: str, jacobian: Tensor, scale: float = 1.0) -> Matrix:
        count = len(jacobian)
        losses = normal(count).exp() * scale
        return Matrix(f"{name}, T={count}", jacobian * scale, losses)

    def conditioned(count: int, decades: int) -> Tensor:
        left, _ = torch.linalg.qr(normal(count, count))
        right, _ = torch.linalg.qr(normal(count + 5, count))
        values = torch.logspace(0, -decades, count, dtype=torch.float64)
        conditioned: Tensor = (left * values) @ right.T
        return conditioned

    for count in range(1, 41):
        conflicting = normal(count, 3) @ normal(3, 60) + 0.5 * normal(count, 60)
        yield named("conflicting", conflicting * normal(count, 1).exp())
    for count in (2, 3, 5, 10):
        row, other = normal(1, 20), normal(count, 20)
        steps = torch.arange(1.0, count + 1, dtype=torch.float64)[:, None]
        signs = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0).double()[:, None]
        base = named("independent", other)
        yield base
        yield replace(base, name=f"{base.name}, float32", jacobian=other.float(), losses=base.losses.float())
        yield named("aligned", other + 3 * row)
        yield named("zero", torch.zeros(count, 20, dtype=torch.float64))
        yield named("one zero row", other * (torch.arange(count) != 1)[:, None])
        yield named("identical", row.expand(count, -1))
        yield named("two identical", torch.cat([other[:1], other[:-1]]))
        yield named("parallel", row * steps)
        yield named("opposite", row * signs)
        yield named("opposite of unequal lengths", row * signs * steps)
        yield named("rank one", row * normal(count, 1))
        yield named("orthogonal", torch.eye(count, 20, dtype=torch.float64) * steps)
        yield named("affinely dependent", torch.cat([other[:-1], other[:-1].mean(0, keepdim=True)]))
        yield named("more tasks than parameters", normal(count, 1 + count // 3))
        yield named("one long, one short", other * torch.logspace(-8, 8, count, dtype=torch.float64)[:, None])
        for decades in (3, 6, 12):
            yield named(f"singular values over {decades} decades", conditioned(count, decades))
        for exponent in (-20, -10, -4, 4, 10, 20):
            scaled = named(f"scale 1e{exponent}", normal(count, 20), 10.0**exponent)
            yield scaled
            yield replace(
                scaled,
                name=f"{scaled.name}, float32",
                jacobian=scaled.jacobian.float(),
                losses=scaled.losses.float(),
            )
