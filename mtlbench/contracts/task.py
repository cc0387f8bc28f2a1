"""What is predicted: a task, its output, its loss and its metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torchmetrics
from torch import Tensor

Likelihood = Literal["categorical", "gaussian", "laplace"]

Moves = Literal["fixed", "map", "depth", "inverse-depth", "normals", "box", "derived"]
"""What becomes of a target when its image is flipped, cropped or zoomed; see `Task`."""


@dataclass(frozen=True)
class Vector:
    """A head output of shape ``[B, size]``."""

    size: int


@dataclass(frozen=True)
class Map:
    """A head output of shape ``[B, channels, H, W]`` at the resolution of the input."""

    channels: int


Output = Vector | Map


def labelled(target: Tensor) -> Tensor:
    """Return which elements of a target have a label: bool, shaped like it.

    A label is missing where an integer target is ``-1`` and where a real target is NaN.
    """
    return ~target.isnan() if target.is_floating_point() else target != -1


class Loss(ABC):
    """A differentiable loss that masks missing labels (see `labelled`).

    Splitting the loss into a sum and a count is what keeps it exact when a batch is divided: over
    micro-batches, over processes, over the batches of a validation split.
    """

    likelihood: ClassVar[Likelihood]
    """The noise model that the loss is the negative logarithm of; uncertainty weighting needs to know it."""

    @abstractmethod
    def terms(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return (sum of the loss over the labelled elements, their number), two scalars.

        output: ``[B, ...]`` as the head gives it. target: ``[B, ...]``, missing labels marked as above.
        With no label at all the sum is 0 and still differentiable.
        """

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean over the labelled elements, a scalar; 0 with zero gradient where there are none."""
        total, count = self.terms(output, target)
        return total / count.clamp(min=1)


@dataclass(frozen=True)
class Metric:
    """How well a task is solved, with its direction.

    name: as printed and recorded. unit: ``"1"`` for a fraction in 0..1, else ``"px"``, ``"deg"`` and so on.
    make: gives a fresh accumulator: a `torchmetrics.Metric` whose ``update(output, target)`` takes what the
    loss takes and ignores missing labels. It accumulates over a split and scores once, so that a score
    never is an average of batch scores. version: raise it when the definition changes; records that
    differ in it are never compared. state: metrics of a task with an equal ``state`` (not None) accumulate
    the same and differ only in how they score it, so one accumulator serves all of them.
    """

    name: str
    make: Callable[[], torchmetrics.Metric]
    higher_is_better: bool
    unit: str = "1"
    version: int = 1
    state: Hashable = None


@dataclass(frozen=True)
class Task:
    """Something to predict: a pure description without state.

    name: unique within a dataset. output: what its head must give. loss, metrics: see there; the first
    metric is the one that short summaries show. auxiliary: True for a task whose target is derived from
    the input; it is trained and reported, and does not enter Δ-MTL.

    moves: what its target is when the image is moved. ``fixed``: it stays what it is, as a class does;
    ``map``: a value a pixel, which goes where the pixel goes; ``depth``, ``inverse-depth``: a map of
    distances (or of one over them), which a zoom makes smaller (larger); ``normals``: a map of directions x,
    y, z with x to the right; ``box``: xmin, ymin, xmax, ymax in 0..1; ``derived``: made from the moved image.
    None: as output, loss and metrics tell (see `mtlbench.data.augment.moves_of`). mirror: whether the target
    of a mirrored image is
    known: True where labels stay as they are, False where there is no answer (as for a written digit), or for
    each class the one that it becomes, such as (1, 0) for a left and a right hand.
    """

    name: str
    output: Output
    loss: Loss
    metrics: tuple[Metric, ...]
    auxiliary: bool = False
    moves: Moves | None = None
    mirror: bool | tuple[int, ...] = True
