"""Encoders that run side by side and are fused after every stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Generic

import torch
from torch import Tensor, nn

from mtlbench.contracts import Encoder, EncoderFactory, Pyramid, PyramidShape, Task
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.architectures._parts import M, Modules


class Parallel(nn.Module, Generic[M]):
    """One encoder a task. After every stage, a unit gives each encoder what it goes on from.

    architecture: its name, for errors. unit: a function from (channels, number of tasks) to a module that is
    called with what all encoders gave and the index of the receiver. Raises `MtlbenchError` unless all
    encoders have equal channels and strides.
    """

    def __init__(
        self,
        architecture: str,
        encoder: EncoderFactory,
        tasks: Sequence[Task],
        unit: Callable[[int, int], M],
    ) -> None:
        super().__init__()
        encoders = {task.name: encoder(task.name) for task in tasks}
        for (first, one), (second, other) in pairwise(encoders.items()):
            if (one.shape.channels, one.shape.strides) != (other.shape.channels, other.shape.strides):
                raise MtlbenchError(
                    f"architecture {architecture!r} fuses all encoders after every stage, so they must have "
                    f"equal channels and strides; {first!r} has {_text(one)}, {second!r} has {_text(other)}; "
                    "'mmoe[experts=per-task]' and 'stl' can have different ones"
                )
        self.encoders: Modules[Encoder] = Modules(encoders.values())
        self.shapes: list[PyramidShape] = [built.shape for built in encoders.values()]
        self.units: Modules[M] = Modules(unit(c, len(encoders)) for c in self.shapes[0].channels)

    def forward(self, x: Tensor, wanted: Sequence[int]) -> list[Pyramid]:
        """Return the fused features of every stage for the tasks whose indices are ``wanted``."""
        streams = [x] * len(self.encoders)
        pyramids: list[list[Tensor]] = [[] for _ in wanted]
        last = len(self.units) - 1
        for index, unit in enumerate(self.units):
            given = [
                encoder.stages[index](stream) for encoder, stream in zip(self.encoders, streams, strict=True)
            ]
            receivers = wanted if index == last else range(len(streams))
            streams = [unit(given, receiver) for receiver in receivers]
            for pyramid, task in zip(pyramids, wanted, strict=True):
                pyramid.append(streams[receivers.index(task)])
        return [tuple(pyramid) for pyramid in pyramids]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield all parameters but those of the last unit, which must have some of its own for each task."""
        yield from self.encoders.parameters()
        for unit in list(self.units)[:-1]:
            yield from unit.parameters()


def near_identity(tasks: int, own: float) -> Tensor:
    """Return ``[T, T]``: ``own`` on the diagonal, the rest of each row shared evenly; 1 for one task."""
    if tasks == 1:
        return torch.ones(1, 1)
    return torch.full((tasks, tasks), (1 - own) / (tasks - 1)).fill_diagonal_(own)


def _text(encoder: Encoder) -> str:
    return f"channels {list(encoder.shape.channels)} at strides {list(encoder.shape.strides)}"
