"""Backbones as lists of stages."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor, nn

Pyramid = tuple[Tensor, ...]
"""Every stage's features, finest first: level ``i`` is ``[B, channels[i], H/strides[i], W/strides[i]]``."""


@dataclass(frozen=True)
class PyramidShape:
    """What a head needs to know of the features that it reads.

    channels, strides: one entry a stage, strides relative to the input. map_head: the head that suits
    this encoder when a task wants a map.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    map_head: str = "fcn"


class Encoder(nn.Module, ABC):
    """A backbone: stages that are applied one after another, each giving one level of the pyramid.

    The constructor takes ``in_channels`` first; its other arguments are the encoder's parameters. A stage
    pools (or strides) at its start, so that what it gives is a feature map before pooling. An
    architecture needs nothing but `stages` and `shape`; it may run, mix or attend to them as it likes.
    """

    context: ClassVar[tuple[str, ...]] = ("in_channels",)

    stages: nn.ModuleList
    shape: PyramidShape

    def forward(self, x: Tensor) -> Pyramid:
        """Apply all stages to ``x`` ``[B, C, H, W]`` and return what each gave."""
        pyramid = []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(x)
        return tuple(pyramid)


class EncoderFactory(Protocol):
    """Gives a new encoder at every call.

    task: whom the encoder will serve. Where ``--encoder`` names one encoder for each task, an architecture
    that builds encoders by task says which; None asks for the one encoder that suits all tasks and raises
    `MtlbenchError` where tasks have different ones.
    """

    def __call__(self, task: str | None = None) -> Encoder:
        """Return a new encoder."""
        ...
