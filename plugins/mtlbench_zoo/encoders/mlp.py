"""A perceptron for tables."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor, nn

from mtlbench.contracts import Encoder, PyramidShape
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.encoders._entry import require_between


class Row(nn.Module):
    """Makes an image of one pixel of a table's row; it has no parameters."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, features, 1, 1]`` for ``x`` ``[B, features]``."""
        if x.dim() != 2 or x.shape[1] != self.features:
            raise MtlbenchError(
                f"encoder 'mlp' reads tables [B, {self.features}], found {tuple(x.shape)}; images need"
                " another encoder: mtlbench ls encoders"
            )
        return x[:, :, None, None]


class MLP(Encoder):
    """A perceptron for tables: stages of one linear layer, batch norm and ReLU.

    A row is an image of one pixel and a linear layer a 1x1 convolution of it, so every architecture that
    runs on images runs on tables; features are ``[B, C, 1, 1]``. Tasks must want vectors.

    hidden: units of each stage.
    """

    inputs: ClassVar[Literal["images", "tables"]] = "tables"

    def __init__(self, in_channels: int, hidden: Sequence[int] = (128, 128)) -> None:
        super().__init__()
        if not hidden:
            raise MtlbenchError("encoder 'mlp': hidden must name the units of at least one stage, found []")
        for units in hidden:
            require_between("mlp", "hidden", units, 1)
        self.shape = PyramidShape(tuple(hidden), (1,) * len(hidden), map_head=None)
        first, *later = (_layer(*pair) for pair in pairwise((in_channels, *hidden)))
        self.stages = nn.ModuleList(nn.Sequential(*parts) for parts in ([Row(in_channels), *first], *later))


def _layer(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
