"""What a head is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from mtlbench.contracts import Output, Pyramid, PyramidShape


class Head(nn.Module, ABC):
    """Turns the pyramid of one task into its output.

    The constructor takes ``outputs``, the size of the vector or the channels of the map, and the shape of
    the pyramid; its other arguments are the head's parameters.
    """

    context: ClassVar[tuple[str, ...]] = ("outputs", "shape")

    gives: ClassVar[type[Output]]
    """The kind of output that this head is for."""

    def __init__(self, outputs: int, shape: PyramidShape) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, pyramid: Pyramid, size: tuple[int, int]) -> Tensor:
        """Return ``[B, outputs]``, or ``[B, outputs, H, W]`` for inputs of ``size = (H, W)``."""
