"""The decoder of SegNet, for tasks that want a map."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtlbench.contracts import Map, Output, Pyramid, PyramidShape
from mtlbench.errors import MtlbenchError
from mtlbench.heads.head import Head


class SegNetHead(Head):
    """SegNet's decoder: every step puts values back where max pooling took them from, then convolves.

    The last stage is pooled once more; from there, for each stage from coarse to fine, values go to the
    places of the maxima of that stage's 2x2 poolings, with zeros between (unpooling), and pass convolutions
    with batch norm, the last of them to the channels of the next finer stage. A 1x1 convolution gives the
    output, upsampled bilinearly where the finest stage is coarser than the input. The indices are found anew
    from the maps that the stages give, since those are what the next stages pool.

    convolutions: how many a stage has, one number for all or one for each, finest first. kernel: their size,
    odd. relu: whether ReLU follows each norm (SegNet-Basic: false).
    Source: Badrinarayanan, Kendall & Cipolla, TPAMI 2017, arXiv:1511.00561.
    """

    gives: ClassVar[type[Output]] = Map

    def __init__(
        self,
        outputs: int,
        shape: PyramidShape,
        convolutions: Sequence[int] = (2,),
        kernel: int = 3,
        relu: bool = True,
    ) -> None:
        super().__init__(outputs, shape)
        stages = len(shape.channels)
        if any(fine * 2 != coarse for fine, coarse in pairwise(shape.strides)):
            raise MtlbenchError(
                "head 'segnet' undoes 2x2 poolings, so a stage must have twice the stride of the one before;"
                f" here strides are {list(shape.strides)}: use another head, such as aspp"
            )
        if len(convolutions) not in (1, stages) or min(convolutions) < 1:
            raise MtlbenchError(
                "head 'segnet': convolutions must be one number from 1 on for all stages or one for each of"
                f" the {stages}, found {list(convolutions)}"
            )
        if kernel < 1 or kernel % 2 == 0:
            raise MtlbenchError(f"head 'segnet': kernel must be odd and at least 1, found {kernel}")
        counts = convolutions if len(convolutions) == stages else [convolutions[0]] * stages
        finer = (shape.channels[0], *shape.channels[:-1])
        self.steps = nn.ModuleList(
            nn.Sequential(*_convolutions(own, to, count, kernel, relu))
            for own, to, count in reversed(list(zip(shape.channels, finer, counts, strict=True)))
        )
        self.out = nn.Conv2d(shape.channels[0], outputs, 1)

    def forward(self, pyramid: Pyramid, size: tuple[int, int]) -> Tensor:
        """Return ``[B, outputs, H, W]`` for ``size = (H, W)``."""
        x = functional.max_pool2d(pyramid[-1], 2, ceil_mode=True)
        for step, stage in zip(self.steps, reversed(pyramid), strict=True):
            x = step(unpool(x, corners(stage, x.shape[2:]), stage.shape[2:]))
        x = self.out(x)
        if x.shape[2:] != size:
            x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return x


def corners(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return which corner of each 2x2 window of ``x`` has its maximum: 0, 1 above, 2, 3 below; uint8.

    size: of the result, half of that of ``x``, rounded down or up.
    """
    with torch.no_grad():
        up = any(2 * half > whole for half, whole in zip(size, x.shape[2:], strict=True))
        _, places = functional.max_pool2d(x, 2, ceil_mode=up, return_indices=True)
        width = x.shape[3]
        found = (places // width) % 2 * 2 + (places % width) % 2
        return found[:, :, : size[0], : size[1]].to(torch.uint8)


def unpool(x: Tensor, corners: Tensor, size: Sequence[int]) -> Tensor:
    """Return ``[B, C, *size]`` with every value of ``x`` in its corner of a 2x2 window, and zeros elsewhere.

    `torch.nn.functional.max_unpool2d` without its scattered writes, which are refused where results must be
    reproducible.
    """
    height, width = (2 * side for side in x.shape[2:])
    rows, columns = (torch.arange(side, device=x.device) % 2 for side in (height, width))
    values, wanted = (functional.interpolate(t, scale_factor=2, mode="nearest") for t in (x, corners))
    sparse = torch.where(wanted == rows[:, None] * 2 + columns, values, 0)
    return functional.pad(sparse, (0, size[1] - width, 0, size[0] - height))


def _convolutions(own: int, to: int, count: int, kernel: int, relu: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for outputs in [own] * (count - 1) + [to]:
        layers += [
            nn.Conv2d(own, outputs, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        layers += [nn.ReLU(inplace=True)] if relu else []
    return layers
