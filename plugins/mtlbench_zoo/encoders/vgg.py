"""VGG-16."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from mtlbench.contracts import PyramidShape
from mtlbench_zoo.encoders._entry import Entry
from mtlbench_zoo.encoders._weights import Pretrained, without_biases

CONVOLUTIONS = (2, 2, 3, 3, 3)
"""Convolutions of each stage."""
CHANNELS = (64, 128, 256, 512, 512)
STRIDES = (1, 2, 4, 8, 16)


class VGG16(Pretrained):
    """VGG-16: five stages of two or three 3x3 convolutions between 2x2 max poolings.

    batch_norm: whether batch norm follows every convolution, which then has no bias (a bias before a norm
    changes nothing). weights: "imagenet" for torchvision's checkpoint, or the path of a .pth or .safetensors
    file with the keys of torchvision's ``vgg16`` (``vgg16_bn`` with batch norm). normalize: whether images
    are brought to ImageNet's mean and deviation; none: exactly when weights are given.
    Source: Simonyan & Zisserman, ICLR 2015, arXiv:1409.1556, configuration D without the classifier:
    14,714,688 parameters for RGB. The last pooling is left out, since a stage gives its map before pooling.
    """

    called: ClassVar[str] = "vgg16"

    def __init__(
        self,
        in_channels: int,
        batch_norm: bool = False,
        weights: str | None = None,
        normalize: bool | None = None,
    ) -> None:
        super().__init__()
        self.shape = PyramidShape(CHANNELS, STRIDES)
        if normalize is None:
            normalize = weights is not None
        self.stages = vgg_stages(Entry(self.called, in_channels, STRIDES[-1], normalize), batch_norm)
        self.batch_norm = batch_norm
        self.load({"batch_norm": batch_norm, "weights": weights})

    @classmethod
    def published(cls, parameters: Mapping[str, Any]) -> str:
        """Return the name of torchvision's file, with or without batch norm."""
        return "vgg16_bn-6c64b313.pth" if parameters["batch_norm"] else "vgg16-397923af.pth"

    def adapt(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Move the biases that torchvision has before batch norm into the running means."""
        return without_biases(found) if self.batch_norm else found


def vgg_stages(entry: Entry, batch_norm: bool) -> nn.ModuleList:
    """Return the stages, whose layers are numbered as in torchvision's ``features``."""
    stages: list[nn.Module] = []
    inputs, number = entry.in_channels, 0
    for count, outputs in zip(CONVOLUTIONS, CHANNELS, strict=True):
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if not stages:
            parts["entry"] = entry
        else:
            parts[str(number)] = nn.MaxPool2d(2)
            number += 1
        for _ in range(count):
            layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=not batch_norm)]
            layers += [nn.BatchNorm2d(outputs)] if batch_norm else []
            for layer in (*layers, nn.ReLU(inplace=True)):
                parts[str(number)] = layer
                number += 1
            inputs = outputs
        stages.append(nn.Sequential(parts))
    return nn.ModuleList(stages)
