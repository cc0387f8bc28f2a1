"""What the encoders of the zoo ask of their input and of their parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlbench.errors import MtlbenchError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


class Entry(nn.Module):
    """Passes images on and refuses what the encoder could not read; it has no parameters.

    stride: the total stride of the encoder; images must be at least as large, or nothing is left of them.
    normalize: whether images in 0..1 are brought to ImageNet's mean and standard deviation, as encoders
    that were trained there expect.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, name: str, in_channels: int, stride: int, normalize: bool = False) -> None:
        super().__init__()
        if normalize and in_channels != 3:
            raise MtlbenchError(
                f"encoder {name!r}: normalize and weights are for images of 3 channels, found {in_channels}"
            )
        self.name, self.in_channels, self.stride = name, in_channels, stride
        self.normalize = normalize
        if normalize:
            self.expect(IMAGENET_MEAN, IMAGENET_DEVIATION)

    def expect(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        """Set what images are brought to where they are normalised: one number a channel."""
        for key, values in (("mean", mean), ("deviation", deviation)):
            self.register_buffer(key, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` ``[B, in_channels, H, W]``, normalised or as it is."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise MtlbenchError(
                f"encoder {self.name!r} reads images [B, {self.in_channels}, H, W], found {tuple(x.shape)}"
            )
        if min(x.shape[2:]) < self.stride:
            raise MtlbenchError(
                f"encoder {self.name!r} needs images of at least {self.stride} x {self.stride} pixels (its "
                f"total stride), found {x.shape[2]} x {x.shape[3]}; use larger images or a shallower encoder"
            )
        return (x - self.mean) / self.deviation if self.normalize else x


class ChannelsLast(nn.Module):
    """Lays images out with channels innermost, faster for all that follows; the values stay."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` in that layout."""
        # Not contiguous(): that takes an image of one channel for laid out already, and later layers do not.
        return x.clone(memory_format=torch.channels_last)


def require_between(encoder: str, parameter: str, found: int, low: int, high: int | None = None) -> None:
    """Refuse a value of ``parameter`` outside ``low..high`` (None: no upper limit)."""
    if found < low or (high is not None and found > high):
        rule = f"at least {low}" if high is None else f"in {low}..{high}"
        raise MtlbenchError(f"encoder {encoder!r}: {parameter} must be {rule}, found {found}")
