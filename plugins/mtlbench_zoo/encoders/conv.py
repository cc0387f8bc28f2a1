"""A small convolutional net."""

from __future__ import annotations

from mtlbench.contracts import Encoder, PyramidShape
from mtlbench.heads import he_initialise
from torch import nn

from mtlbench_zoo.encoders.entry import ChannelsLast, Entry, require_between


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
        self.stages = nn.ModuleList([nn.Sequential(Entry("conv", in_channels, strides[-1]), ChannelsLast())])
        self.stages.extend(nn.Sequential() for _ in channels[1:])
        for stage, inputs, outputs in zip(self.stages, (in_channels, *channels), channels, strict=False):
            assert isinstance(stage, nn.Sequential)
            stage.append(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False))
            stage.append(nn.BatchNorm2d(outputs))
            stage.append(nn.ReLU(inplace=True))
        he_initialise(self)
