"""The head of tasks that want a vector."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from mtlbench.contracts import Output, Pyramid, PyramidShape, Vector
from mtlbench.errors import MtlbenchError
from mtlbench.heads.head import Head


class VectorHead(Head):
    """Global average pooling of the last stage, then a perceptron.

    hidden: units of its hidden layers, each followed by ReLU; [] for a linear layer.
    """

    gives: ClassVar[type[Output]] = Vector

    def __init__(self, outputs: int, shape: PyramidShape, hidden: Sequence[int] = (128, 64)) -> None:
        super().__init__(outputs, shape)
        if any(units < 1 for units in hidden):
            raise MtlbenchError(
                f"head 'vector': hidden must be whole numbers from 1 on, found {list(hidden)}"
            )
        *between, last = pairwise((shape.channels[-1], *hidden, outputs))
        layers: list[nn.Module] = []
        for inputs, units in between:
            layers += [nn.Linear(inputs, units), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(*last))

    def forward(self, pyramid: Pyramid, size: tuple[int, int]) -> Tensor:
        """Return ``[B, outputs]``; ``size`` plays no part."""
        vector: Tensor = self.layers(pyramid[-1].mean((2, 3)))
        return vector
