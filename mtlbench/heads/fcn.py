"""The light head of tasks that want a map."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from mtlbench.contracts import Map, Output, Pyramid, PyramidShape
from mtlbench.heads.head import Head

_HIDDEN = 64
_STAGES = 3


class FCNHead(Head):
    """Scores of the last three stages (or as many as there are), summed from coarse to fine.

    The last stage passes a 3x3 convolution to 64 channels, batch norm and ReLU; a 1x1 convolution then
    scores it, as one does for each finer stage. Scores are upsampled bilinearly, in the end to the size of
    the input.
    Source: Long, Shelhamer & Darrell, CVPR 2015, arXiv:1411.4038 (FCN-8s), with the two wide layers of their
    classifier replaced by the small convolution and fixed upsampling for the learned one.
    """

    gives: ClassVar[type[Output]] = Map

    def __init__(self, outputs: int, shape: PyramidShape) -> None:
        super().__init__(outputs, shape)
        *finer, last = shape.channels[-_STAGES:]
        self.last = nn.Sequential(
            nn.Conv2d(last, _HIDDEN, 3, padding=1, bias=False),
            nn.BatchNorm2d(_HIDDEN),
            nn.ReLU(inplace=True),
            nn.Conv2d(_HIDDEN, outputs, 1),
        )
        self.finer = nn.ModuleList(nn.Conv2d(channels, outputs, 1) for channels in reversed(finer))

    def forward(self, pyramid: Pyramid, size: tuple[int, int]) -> Tensor:
        """Return ``[B, outputs, H, W]`` for ``size = (H, W)``."""
        scores: Tensor = self.last(pyramid[-1])
        for score, stage in zip(self.finer, pyramid[-2::-1], strict=False):
            scores = _upsample(scores, stage.shape[2:]) + score(stage)
        return _upsample(scores, size)


def _upsample(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
