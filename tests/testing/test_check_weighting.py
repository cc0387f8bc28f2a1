"""The kit finds what a weighting does wrong, and says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from mtlbench.contracts import Need, Task, Weighting
from mtlbench.errors import MtlbenchError
from mtlbench.testing import check_weighting, matrix_zoo


class Ones(Weighting):
    """Ones, for losses."""

    needs = Need.LOSSES
    properties: ClassVar[frozenset[str]] = frozenset({"permutation-equivariant", "scale-free"})

    def forward(self, losses: Tensor) -> Tensor:
        return torch.ones_like(losses)


class Mean(Weighting):
    """The mean gradient, for the Jacobian."""

    needs = Need.JACOBIAN
    properties: ClassVar[frozenset[str]] = frozenset({"permutation-equivariant", "scale-free"})

    def forward(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        return jacobian.mean(0)


class ThreeOnly(Ones):
    """Refuses all but three tasks."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        if len(tasks) != 3:
            raise MtlbenchError("three tasks, please")


@pytest.mark.parametrize("cls", [Ones, Mean, ThreeOnly])
def test_what_keeps_the_contract_passes(cls: type[Weighting]) -> None:
    check_weighting(cls)


class NoSize(Ones):
    """Refuses every number of tasks."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        raise MtlbenchError("never")


class WrongShape(Ones):
    """One weight for all."""

    def forward(self, losses: Tensor) -> Tensor:
        return torch.ones(1).to(losses).expand(1)


class NotFinite(Weighting):
    """Divides by lengths."""

    needs = Need.GRAM

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        return 1 / gram.diagonal()


class ByPosition(Ones):
    """Favours the first task and says that it does not."""

    def forward(self, losses: Tensor) -> Tensor:
        return 1 / torch.arange(1, len(losses) + 1).to(losses)


class ByScale(Ones):
    """Depends on the scale of the losses and says that it does not."""

    def forward(self, losses: Tensor) -> Tensor:
        return 1 / (1 + losses)


class Conflicting(Weighting):
    """Equal weights, declared to be more than they are."""

    needs = Need.GRAM
    properties: ClassVar[frozenset[str]] = frozenset({"non-conflicting"})

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        return torch.ones_like(gram.diagonal())


class MoreThanLengths(Weighting):
    """Reads products of two tasks and says that it does not."""

    needs = Need.GRAM
    properties: ClassVar[frozenset[str]] = frozenset({"diagonal"})

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        return 1 + gram.sum(0).clamp(0, 1)


class MisspelledProperty(Ones):
    """Declares what there is not."""

    properties: ClassVar[frozenset[str]] = frozenset({"scale free"})


class GlobalDraws(Ones):
    """Draws from the global generator."""

    properties: ClassVar[frozenset[str]] = frozenset()

    def forward(self, losses: Tensor) -> Tensor:
        torch.rand(1)
        return torch.ones_like(losses)


class Unsaved(Ones):
    """Counts its steps where no checkpoint sees it."""

    properties: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(self, losses: Tensor) -> Tensor:
        return torch.ones_like(losses) / (1 + self.steps)

    def after_step(self, losses: object) -> None:
        self.steps += 1


class Overwriting(Weighting):
    """Changes the matrix that it is given."""

    needs = Need.GRAM

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        gram += 1
        return torch.ones_like(gram.diagonal())


class AllTasksOnly(Ones):
    """Has a weight for each task and does not look which are there."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.register_buffer("weights", torch.ones(len(tasks)))

    def forward(self, losses: Tensor) -> Tensor:
        return self.weights.to(losses)


class Untrained(Ones):
    """Has a parameter that is not in the objective."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.log_scale = nn.Parameter(torch.zeros(len(tasks)))

    def forward(self, losses: Tensor) -> Tensor:
        return losses.sum()


class Undocumented(Ones):
    pass


Undocumented.__doc__ = None


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (NoSize, "refuses every number of tasks"),
        (WrongShape, r"the answer must be \(2,\), got \(1,\) on conflicting, T=2"),
        (NotFinite, "not finite on zero, T=2"),
        (ByPosition, "declared permutation-equivariant and is not"),
        (ByScale, "declared scale-free and is not"),
        (Conflicting, "declared non-conflicting, but on"),
        (MoreThanLengths, "declared diagonal and reads more"),
        (MisspelledProperty, r"unknown properties \['scale free'\]"),
        (GlobalDraws, "every draw must come from self.generator"),
        (Unsaved, "is all state in buffers"),
        (Overwriting, "changes what it is given"),
        (AllTasksOnly, r"the answer must be \(3,\), got \(5,\)"),
        (Untrained, "parameter log_scale has no influence"),
        (Undocumented, "docstring"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_breaks_the_contract_is_named(cls: type[Weighting], message: str) -> None:
    with pytest.raises(AssertionError, match=message) as caught:
        check_weighting(cls)
    assert str(caught.value).startswith(f"{cls.__name__}: ")


def test_the_zoo_is_the_same_every_time_and_names_each_matrix_once() -> None:
    first, second = list(matrix_zoo()), list(matrix_zoo())
    assert len({matrix.name for matrix in first}) == len(first) == len(second)
    assert {matrix.count for matrix in first} == set(range(1, 41))
    assert all(torch.equal(a.jacobian, b.jacobian) for a, b in zip(first, second, strict=True))
    assert {matrix.jacobian.dtype for matrix in first} == {torch.float32, torch.float64}
    assert all(matrix.jacobian.isfinite().all() and (matrix.losses > 0).all() for matrix in first)
