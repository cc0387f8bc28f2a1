"""What the residual networks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from mtlbench.contracts import PyramidShape
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.encoders._entry import Entry
from mtlbench_zoo.encoders._weights import Pretrained


class Block(nn.Module, ABC):
    """A residual block: convolutions and a shortcut, which is a 1x1 convolution where shapes change.

    The names of its layers are torchvision's. dilations: of the convolution that may stride, and of those
    after it.
    """

    expansion: ClassVar[int]

    def __init__(self, inputs: int, width: int, stride: int, dilations: tuple[int, int]) -> None:
        super().__init__()
        outputs = width * self.expansion
        for number, convolution in enumerate(self._convolutions(inputs, width, stride, dilations), start=1):
            self.add_module(f"conv{number}", convolution)
            self.add_module(f"bn{number}", nn.BatchNorm2d(convolution.out_channels))
        self.count = number
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    @staticmethod
    @abstractmethod
    def _convolutions(inputs: int, width: int, stride: int, dilations: tuple[int, int]) -> list[nn.Conv2d]:
        """Return what lies between the norms, in order."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, outputs, H/stride, W/stride]``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        for number in range(1, self.count + 1):
            x = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x))
            x = functional.relu(x if number < self.count else x + shortcut, inplace=True)
        return x


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    expansion = 1

    @staticmethod
    def _convolutions(inputs: int, width: int, stride: int, dilations: tuple[int, int]) -> list[nn.Conv2d]:
        return [_three(inputs, width, stride, dilations[0]), _three(width, width, 1, dilations[1])]


class Bottleneck(Block):
    """A 1x1 convolution, a 3x3 one that may stride, and a 1x1 one to four times the channels."""

    expansion = 4

    @staticmethod
    def _convolutions(inputs: int, width: int, stride: int, dilations: tuple[int, int]) -> list[nn.Conv2d]:
        return [
            nn.Conv2d(inputs, width, 1, bias=False),
            _three(width, width, stride, dilations[0]),
            nn.Conv2d(width, 4 * width, 1, bias=False),
        ]


class ResNet(Pretrained):
    """A stem and four groups of residual blocks: torchvision's ``conv1 bn1``, ``layer1`` .. ``layer4``."""

    block: ClassVar[type[Block]]
    blocks: ClassVar[tuple[int, int, int, int]]
    file: ClassVar[str]

    def __init__(
        self,
        in_channels: int,
        dilated: bool = False,
        stride: Literal[8, 16, 32] | None = None,
        weights: str | None = None,
        normalize: bool | None = None,
    ) -> None:
        super().__init__()
        total = (8 if dilated else 32) if stride is None else stride
        if dilated != (total < 32):
            rule = "8 or 16" if dilated else "32; smaller ones need dilated=true"
            where = f"encoder '{self.called}' with dilated={str(dilated).lower()}"
            raise MtlbenchError(f"{where}: stride must be {rule}, found {total}")
        strides = tuple(min(s, total) for s in (2, 4, 8, 16, 32))
        widths = [n * self.block.expansion for n in (64, 128, 256, 512)]
        self.shape = PyramidShape((64, *widths), strides, "aspp" if dilated else "fcn")
        if normalize is None:
            normalize = weights is not None
        stem = OrderedDict[str, nn.Module](
            entry=Entry(self.called, in_channels, total, normalize),
            conv1=nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False),
            bn1=nn.BatchNorm2d(64),
            relu=nn.ReLU(inplace=True),
        )
        stages = [stem]
        inputs, before = 64, 4
        for number, count in enumerate(self.blocks, start=1):
            after = strides[number]
            # Where a stride is left out, what comes after it is spread instead, so that it sees the same.
            dilations = (max(2 ** (number + 1) // after // 2, 1), 2 ** (number + 1) // after)
            pool = {"maxpool": nn.MaxPool2d(3, stride=2, padding=1)} if number == 1 else {}
            width = 32 * 2**number
            layer = [self.block(inputs, width, after // before, dilations)]
            inputs, before = width * self.block.expansion, after
            layer += [self.block(inputs, width, 1, (dilations[1],) * 2) for _ in range(count - 1)]
            stages.append(OrderedDict[str, nn.Module](**pool, **{f"layer{number}": nn.Sequential(*layer)}))
        self.stages = nn.ModuleList(nn.Sequential(parts) for parts in stages)
        self.load({"weights": weights})

    @classmethod
    def published(cls, parameters: Mapping[str, Any]) -> str:
        """Return the name of torchvision's file."""
        return cls.file


def _three(inputs: int, outputs: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
