"""The decoder of the U-Net, for tasks that want a map."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtlbench.contracts import Map, Output, Pyramid, PyramidShape
from mtlbench.heads.head import Head


class Up(nn.Module):
    """One step of the decoder: to the channels and the size of the next finer stage, then joined with it."""

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(coarse, fine, 1, bias=False)
        self.mix = nn.Sequential(
            nn.Conv2d(2 * fine, fine, 3, padding=1, bias=False),
            nn.BatchNorm2d(fine),
            nn.ReLU(inplace=True),
            nn.Conv2d(fine, fine, 3, padding=1, bias=False),
            nn.BatchNorm2d(fine),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return ``[B, fine, *skip.shape[2:]]`` from ``x`` ``[B, coarse, h, w]`` and ``skip``."""
        # Narrowed before it is enlarged: the same numbers as the other way round, at a quarter of the price.
        x = functional.interpolate(self.narrow(x), size=skip.shape[2:], mode="nearest")
        mixed: Tensor = self.mix(torch.cat([skip, x], dim=1))
        return mixed


class UNetHead(Head):
    """The expanding path of a U-Net over all stages, with their channels in reverse.

    Each step narrows the features to the channels of the next finer stage (1x1 convolution), enlarges them
    to its size (nearest neighbour, so any strides and odd sizes fit), joins both and applies two 3x3
    convolutions with batch norm and ReLU. A 1x1 convolution gives the output; where the finest stage is
    coarser than the input, the output is upsampled bilinearly.
    Source: Ronneberger, Fischer & Brox, MICCAI 2015, arXiv:1505.04597. Deviations: convolutions are
    padded and normalised, and the "up-convolution" is the 1x1 convolution and the enlargement.
    """

    gives: ClassVar[type[Output]] = Map

    def __init__(self, outputs: int, shape: PyramidShape) -> None:
        super().__init__(outputs, shape)
        self.ups = nn.ModuleList(Up(coarse, fine) for coarse, fine in pairwise(reversed(shape.channels)))
        self.out = nn.Conv2d(shape.channels[0], outputs, 1)

    def forward(self, pyramid: Pyramid, size: tuple[int, int]) -> Tensor:
        """Return ``[B, outputs, H, W]`` for ``size = (H, W)``."""
        *skips, x = pyramid
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            x = up(x, skip)
        x = self.out(x)
        if x.shape[2:] != size:
            x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return x
