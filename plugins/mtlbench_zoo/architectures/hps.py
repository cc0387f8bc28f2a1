"""Hard parameter sharing: everything below the heads is shared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from mtlbench.contracts import Architecture, EncoderFactory, Features, PyramidShape, Task


class HardParameterSharing(Architecture):
    """One encoder for all tasks ("shared bottom"): every head reads the same pyramid.

    Source: Caruana, ICML 1993; Multitask Learning, Machine Learning 28, 1997.
    """

    cost: ClassVar[str] = "1 trunk"
    shares_features: ClassVar[bool] = True

    def __init__(self, encoder: EncoderFactory, tasks: Sequence[Task]) -> None:
        super().__init__(encoder, tasks)
        self.encoder = encoder()

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        """Return the one pyramid, under the name of each of ``tasks`` (None: of all) and as shared."""
        pyramid = self.encoder(x)
        return Features(dict.fromkeys(self.task_names if tasks is None else tasks, pyramid), shared=pyramid)

    def shape(self, task: str) -> PyramidShape:
        """Return the shape of the encoder's pyramid."""
        return self.encoder.shape
