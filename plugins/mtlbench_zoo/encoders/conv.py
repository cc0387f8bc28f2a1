"""A small convolutional net."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from mtlbench.contracts import Encoder, PyramidShape
from mtlbench_zoo.encoders._entry import ChannelsLast, Entry, require_between


class Conv(Encoder):
    """Strided 3x3 convolutions with batch norm and ReLU: for tests, for CPUs and for small images.

    depth: number of stages, 1..6, each halving the resolution. width: channels of the first stage; every
    further stage has twice as many.
    """

    def __init__(self, in_channels: int, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        require_between("conv", "width", width, 1)
        require_between("conv", "depth", depth, 1, 6)
        channels = tuple(width * 2**i for i in range(depth))
        strides = tuple(2 ** (i + 1) for i in range(depth))
        self.shape = PyramidShape(channels, strides)
        first, *later = (_convolution(*pair) for pair in pairwise((in_channels, *channels)))
        entry = [Entry("conv", in_channels, strides[-1]), ChannelsLast()]
        self.stages = nn.ModuleList(nn.Sequential(*parts) for parts in ([*entry, *first], *later))


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]
