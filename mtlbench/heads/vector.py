"""The head of tasks that want a vector."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from mtlbench.contracts import Output, Pyramid, PyramidShape, Vector
from mtlbench.heads.head import Head


class VectorHead(Head):
    """Global average pooling of the last stage, then a perceptron with hidden layers of 128 and 64 units."""

    gives: ClassVar[type[Output]] = Vector

    def __init__(self, outputs: int, shape: PyramidShape) -> None:
        super().__init__(outputs, shape)
        self.layers = nn.Sequential(
            nn.Linear(shape.channels[-1], 128),
            nn.ReLU(inplace=True),
            nn.Linear(128, 64),
            nn.ReLU(inplace=True),
            nn.Linear(64, outputs),
        )

    def forward(self, pyramid: Pyramid, size: tuple[int, int]) -> Tensor:
        """Return ``[B, outputs]``; ``size`` plays no part."""
        vector: Tensor = self.layers(pyramid[-1].mean((2, 3)))
        return vector
