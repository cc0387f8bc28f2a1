"""Backbones as lists of stages."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

Pyramid = tuple[Tensor, ...]
"""Every stage's features, finest first: level ``i`` is ``[B, channels[i], H/strides[i], W/strides[i]]``."""


@dataclass(frozen=True)
class PyramidShape:
    """What a head needs to know of the features that it reads.

    channels, strides: one entry a stage, strides relative to the input. map_head: the head that suits
    this encoder when a task wants a map, a spec such as ``"unet"``; None where features have no place in
    space (a table's are ``[B, C, 1, 1]``), so that no map can be made of them.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    map_head: str | None = "fcn"


class Encoder(nn.Module, ABC):
    """A backbone: stages that are applied one after another, each giving one level of the pyramid.

    The constructor takes ``in_channels`` first; its other arguments are the encoder's parameters. A stage
    pools (or strides) at its start, so that what it gives is a feature map before pooling. An
    architecture needs nothing but `stages` and `shape`; it may run, mix or attend to them as it likes.
    """

    context: ClassVar[tuple[str, ...]] = ("in_channels",)

    inputs: ClassVar[Literal["images", "tables"]] = "images"
    """What it reads: ``[B, in_channels, H, W]``, or ``[B, in_channels]``."""

    stages: nn.ModuleList
    shape: PyramidShape
    initialised: bool = False
    """Whether parameters have the values that they should start from (weights that were loaded, an
    initialisation of the encoder's own), so that the protocol's initialisation leaves them alone."""

    @classmethod
    def identity(cls, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of the ``parameters`` decides the result: by default all of them, as they are.

        An encoder that reads a file puts a hash of its content in place of its path.
        """
        return dict(parameters)

    @classmethod
    def restored(cls, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of an encoder that is about to get the values it had after training.

        parameters: as `identity` gave them. An encoder that started from a file leaves the file out, and all
        else that followed from it as it was.
        """
        return dict(parameters)

    def forward(self, x: Tensor) -> Pyramid:
        """Apply all stages to ``x``, ``[B, C, H, W]`` or ``[B, F]``, and return what each gave."""
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
