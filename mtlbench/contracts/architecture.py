"""How encoders are shared between tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from mtlbench.contracts.encoder import EncoderFactory, Pyramid, PyramidShape
from mtlbench.contracts.task import Task


@dataclass(frozen=True)
class Reading:
    """Something inside an architecture that people look at, as it was in one forward pass.

    kind and values: ``"gate"`` ``[B, E]``, a task's weights over E experts (or branches), rows that sum to 1;
    ``"attention"`` ``[B, C, H, W]`` in 0..1; ``"mixing"`` ``[T, T]`` or ``[C, T, T]``, how much of column
    j's features row i receives. place: where in the network, such as ``"stage3"``. task: whom it serves;
    None where it serves all. names: what the E experts or T branches are called; may be left empty.
    """

    kind: Literal["gate", "attention", "mixing"]
    place: str
    values: Tensor
    task: str | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Features:
    """What an architecture gives to the heads.

    pyramids: one a task. shared: the pyramid that feeds all tasks, where there is one; then every entry
    of `pyramids` is that same object. penalty: an extra term of the objective (a regulariser), already
    multiplied by its weight; it is added to the objective, never weighted like a task. readings: what can
    be looked at inside; they cost nothing, since they are what the forward pass has computed anyway.
    """

    pyramids: Mapping[str, Pyramid]
    shared: Pyramid | None = None
    penalty: Tensor | None = None
    readings: tuple[Reading, ...] = ()


class Architecture(nn.Module, ABC):
    """Encoders, and what lies between them and the heads.

    The constructor takes ``encoder``, a factory that gives a new encoder at every call, and ``tasks``;
    its other arguments are the architecture's parameters. Heads are not part of it.

    The published cost of a method is stated in `cost`, one line for people (such as "1 trunk").
    """

    context: ClassVar[tuple[str, ...]] = ("encoder", "tasks")
    cost: ClassVar[str] = ""
    shares_features: ClassVar[bool] = False
    """Whether `Features.shared` is given, so that gradients may be taken with respect to features."""
    pulled_apart: bool = True
    """Whether a task's gradient may be pulled through the graph by itself. Where the engine says none is, one
    operation may compute several tasks' features, though the gradient of one would cost that of all."""
    called: str
    """What messages call it: the plugin's name where it was chosen by that, else the class's."""

    def __init__(self, encoder: EncoderFactory, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.called = type(self).__name__
        self.task_names = tuple(task.name for task in tasks)

    @abstractmethod
    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        """Return the features of ``tasks`` (None: of all) for the input ``x`` ``[B, C, H, W]``."""

    @abstractmethod
    def shape(self, task: str) -> PyramidShape:
        """Return the shape of the pyramid that the head of ``task`` receives."""

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Run before every training epoch, also before one that is resumed in its middle.

        epoch: counted from 0. epochs: at most so many. For what follows a schedule, such as a temperature;
        what eval mode gives must not depend on it.
        """

    def shared_parameters(self) -> Iterable[nn.Parameter]:
        """Return what a gradient weighting acts on: by default all parameters.

        A parameter that is left out (a gate or an attention module that serves one task) is treated like
        the parameters of that task's head; it is never left untrained.
        """
        return self.parameters()
