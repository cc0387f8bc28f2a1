"""The encoder of SegNet."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor, nn

from mtlbench.contracts import PyramidShape
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.encoders._entry import Entry
from mtlbench_zoo.encoders._weights import Pretrained, without_biases
from mtlbench_zoo.encoders.vgg import CHANNELS, CONVOLUTIONS, STRIDES, vgg_stages


class SegNet(Pretrained):
    """SegNet's encoder: the 13 convolutions of VGG-16 with batch norm; the head ``segnet`` decodes it.

    The pooling indices that SegNet hands to its decoder follow from the maps that the stages give, so the
    head finds them again, and the encoder is a plain list of stages.

    basic: SegNet-Basic, five stages of one 7x7 convolution to 64 channels with batch norm and ReLU; its
    decoder has no ReLU. weights: "imagenet" for torchvision's checkpoint of ``vgg16_bn``, or the path of a
    .pth or .safetensors file with the keys of torchvision's ``vgg16_bn`` or ``vgg16``; of the latter the
    convolutions are taken (batch norm makes their biases idle) and norms start at one and zero, as in the
    paper. normalize: whether images are brought to ImageNet's mean and deviation; none: exactly when weights
    are given.
    Source: Badrinarayanan, Kendall & Cipolla, TPAMI 2017, arXiv:1511.00561. Deviation: their Basic has four
    stages each way, this one five.
    """

    called: ClassVar[str] = "segnet"

    def __init__(
        self,
        in_channels: int,
        basic: bool = False,
        weights: str | None = None,
        normalize: bool | None = None,
    ) -> None:
        super().__init__()
        if basic and weights is not None:
            raise MtlbenchError(
                f"encoder '{self.called}': there are no weights for basic=true; leave one out"
            )
        if normalize is None:
            normalize = weights is not None
        entry = Entry(self.called, in_channels, STRIDES[-1], normalize)
        if basic:
            self.shape = PyramidShape((64,) * 5, STRIDES, "segnet[convolutions=[1],kernel=7,relu=false]")
            self.stages = _basic_stages(entry)
        else:
            convolutions = ",".join(map(str, CONVOLUTIONS))
            self.shape = PyramidShape(CHANNELS, STRIDES, f"segnet[convolutions=[{convolutions}]]")
            self.stages = vgg_stages(entry, batch_norm=True)
        self.load({"weights": weights})

    @classmethod
    def published(cls, parameters: Mapping[str, Any]) -> str:
        """Return the name of torchvision's file."""
        return "vgg16_bn-6c64b313.pth"

    def adapt(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a VGG-16 with or without batch norm under the names of one with it."""
        if any(key.endswith("running_mean") for key in found):
            return without_biases(found)
        plain = [f"{layer}." for layer in _convolutions(batch_norm=False)]
        if set(found) != {f"{layer}{part}" for layer in plain for part in ("weight", "bias")}:
            return found  # neither: what does not fit is told by the names of the one with batch norm
        return self._fresh_norms() | {
            f"{layer}.weight": found[f"{old}weight"]
            for layer, old in zip(_convolutions(batch_norm=True), plain, strict=True)
        }

    def _fresh_norms(self) -> dict[str, Tensor]:
        named = {key.partition(".")[2]: value for key, value in self.stages.state_dict().items()}
        return {key: value for key, value in named.items() if value.dim() < 2}


def _convolutions(batch_norm: bool) -> list[int]:
    """Return the numbers of the convolutions among torchvision's ``features``."""
    found, number = [], 0
    for count in CONVOLUTIONS:
        for _ in range(count):
            found.append(number)
            number += 3 if batch_norm else 2
        number += 1
    return found


def _basic_stages(entry: Entry) -> nn.ModuleList:
    stages: list[nn.Module] = []
    for inputs, outputs in pairwise((entry.in_channels, *(64,) * 5)):
        start: list[nn.Module] = [nn.MaxPool2d(2)] if stages else [entry]
        convolution = nn.Conv2d(inputs, outputs, 7, padding=3, bias=False)
        stages.append(nn.Sequential(*start, convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)))
    return nn.ModuleList(stages)
