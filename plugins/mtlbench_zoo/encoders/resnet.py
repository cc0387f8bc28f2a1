"""Residual networks."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

from mtlbench.contracts import Encoder, PyramidShape
from mtlbench_zoo.encoders._entry import Entry


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a strided 1x1 convolution where the shape changes.

    The names of the layers are torchvision's.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, outputs, H/stride, W/stride]``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        return functional.relu(self.bn2(self.conv2(x)) + shortcut, inplace=True)


class ResNet18(Encoder):
    """ResNet-18: a stem and four groups of two basic blocks, at strides 2, 4, 8, 16 and 32.

    Source: He, Zhang, Ren & Sun, CVPR 2016, arXiv:1512.03385, table 1, without the classifier: 11,176,512
    parameters for RGB. Stages hold torchvision's ``conv1 bn1``, ``layer1`` .. ``layer4`` under these names.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.shape = PyramidShape((64, 64, 128, 256, 512), (2, 4, 8, 16, 32))
        stem = OrderedDict[str, nn.Module](
            entry=Entry("resnet18", in_channels, 32),
            conv1=nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False),
            bn1=nn.BatchNorm2d(64),
            relu=nn.ReLU(inplace=True),
        )
        first = OrderedDict[str, nn.Module](
            maxpool=nn.MaxPool2d(3, stride=2, padding=1), layer1=_layer(64, 64, 1)
        )
        later = [
            OrderedDict[str, nn.Module]({f"layer{i}": _layer(16 * 2**i, 32 * 2**i, 2)}) for i in (2, 3, 4)
        ]
        self.stages = nn.ModuleList(nn.Sequential(parts) for parts in (stem, first, *later))


def _layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1))
