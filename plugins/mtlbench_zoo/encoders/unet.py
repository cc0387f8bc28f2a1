"""The contracting path of the U-Net."""

from __future__ import annotations

from torch import nn

from mtlbench.contracts import Encoder, PyramidShape
from mtlbench_zoo.encoders._entry import ChannelsLast, Entry, require_between


class UNet(Encoder):
    """U-Net encoder: stages of two 3x3 convolutions, each with batch norm and ReLU, between 2x2 max poolings.

    depth: number of stages, 2..6 (3: the less-depth ablation). width: channels of the first stage, at full
    resolution; every further stage has twice the channels at half the resolution.
    Source: Ronneberger, Fischer & Brox, MICCAI 2015, arXiv:1505.04597 (there: depth 5, width 64). Deviations:
    convolutions are padded, so that sizes stay, and normalised. The decoder is the head "unet".
    """

    def __init__(self, in_channels: int, depth: int = 4, width: int = 16) -> None:
        super().__init__()
        require_between("unet", "depth", depth, 2, 6)
        require_between("unet", "width", width, 1)
        channels = tuple(width * 2**i for i in range(depth))
        strides = tuple(2**i for i in range(depth))
        self.shape = PyramidShape(channels, strides, map_head="unet")
        first = nn.Sequential(
            Entry("unet", in_channels, strides[-1]), ChannelsLast(), *_convolutions(in_channels, width)
        )
        later = [nn.Sequential(nn.MaxPool2d(2), *_convolutions(c // 2, c)) for c in channels[1:]]
        self.stages = nn.ModuleList([first, *later])


def _convolutions(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]
