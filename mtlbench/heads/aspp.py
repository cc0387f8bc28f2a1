"""The head of DeepLab v3, for tasks that want a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtlbench.contracts import Map, Output, Pyramid, PyramidShape
from mtlbench.errors import MtlbenchError
from mtlbench.heads.head import Head


class ASPPHead(Head):
    """Atrous spatial pyramid pooling: the last stage, looked at with several fields of view at once.

    A 1x1 convolution, one 3x3 convolution for each dilation rate and the average over the whole image, each
    to `width` channels, are joined and mixed by a 1x1 convolution; another one gives the output, which is
    upsampled bilinearly to the size of the input. Convolutions are followed by batch norm and ReLU.

    rates: dilations in pixels of the last stage; the paper has [6, 12, 18] at stride 16 and twice that at
    stride 8. width: channels; the paper has 256.
    Source: Chen, Papandreou, Schroff & Adam, 2017, arXiv:1706.05587, section 3.3. Deviation: the image's
    average is not normalised, since in a batch of one it has no variance.
    """

    gives: ClassVar[type[Output]] = Map

    def __init__(
        self, outputs: int, shape: PyramidShape, rates: Sequence[int] = (6, 12, 18), width: int = 256
    ) -> None:
        super().__init__(outputs, shape)
        if not rates or min(rates) < 1:
            raise MtlbenchError(f"head 'aspp': rates must be whole numbers from 1 on, found {list(rates)}")
        if width < 1:
            raise MtlbenchError(f"head 'aspp': width must be at least 1, found {width}")
        channels = shape.channels[-1]
        views = [nn.Conv2d(channels, width, 1, bias=False)]
        views += [nn.Conv2d(channels, width, 3, padding=r, dilation=r, bias=False) for r in rates]
        self.views = nn.ModuleList(_normalised(view) for view in views)
        self.image = nn.Sequential(nn.Conv2d(channels, width, 1), nn.ReLU(inplace=True))
        self.mix = _normalised(nn.Conv2d((len(views) + 1) * width, width, 1, bias=False))
        self.out = nn.Conv2d(width, outputs, 1)

    def forward(self, pyramid: Pyramid, size: tuple[int, int]) -> Tensor:
        """Return ``[B, outputs, H, W]`` for ``size = (H, W)``."""
        last = pyramid[-1]
        image = self.image(last.mean((2, 3), keepdim=True)).expand(-1, -1, *last.shape[2:])
        x = self.mix(torch.cat([*(view(last) for view in self.views), image], dim=1))
        return functional.interpolate(self.out(x), size=size, mode="bilinear", align_corners=False)


def _normalised(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True))
