"""Parts of images, shown in the size of the whole: where pixels come from, and how they are read."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class View(NamedTuple):
    """What is looked at of each of B images of ``[H, W]``: a window, which is shown in the image's size.

    top, left, height, width: of the windows, in pixels of the image, float64 ``[B]``; they may lie between
    pixels and reach beyond the image. mirrored: whether left and right change places in it, bool ``[B]``.
    size: (H, W).
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    mirrored: Tensor
    size: tuple[int, int]

    @classmethod
    def whole(cls, count: int, size: tuple[int, int]) -> View:
        """Return the views of ``count`` images as they are."""
        zero = torch.zeros(count, dtype=torch.float64)
        return cls(zero, zero, zero + size[0], zero + size[1], zero.bool(), size)

    def of(self, chosen: Tensor) -> View:
        """Return the views of the chosen images, bool ``[B]``."""
        top, left, height, width, mirrored = (part[chosen] for part in self[:5])
        return View(top, left, height, width, mirrored, self.size)

    @property
    def zoom(self) -> Tensor:
        """How many times larger everything looks, ``[B]``."""
        return self.size[1] / self.width

    @property
    def between(self) -> Tensor:
        """For which images shown pixels do not fall on pixels of the image, bool ``[B]``."""
        height, width = self.size
        same = (self.height == height) & (self.width == width)
        return ~(same & (self.top == self.top.round()) & (self.left == self.left.round()))

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """Where the centres of the shown pixels lie in the image: y ``[B, H]`` and x ``[B, W]``, in pixels.

        The first pixel covers 0 to 1, so its centre is at 0.5.
        """
        down, across = ((torch.arange(side, dtype=torch.float64) + 0.5) / side for side in self.size)
        shown = torch.where(self.mirrored[:, None], across.flip(0), across)
        y = self.top[:, None] + down * self.height[:, None]
        return y, self.left[:, None] + shown * self.width[:, None]

    @property
    def outside(self) -> Tensor | None:
        """Which shown pixels lie beyond the image, bool ``[B, 1, H, W]``; None where none do."""
        y, x = self.places
        height, width = self.size
        above, beside = (y < 0) | (y >= height), (x < 0) | (x >= width)
        if not (above.any() or beside.any()):
            return None
        return (above[:, :, None] | beside[:, None, :])[:, None]

    def nearest(self, values: Tensor) -> Tensor:
        """Return ``[B, C, H, W]`` of the pixels that shown ones fall into, in new memory.

        Beyond the edge it goes on as it is there.
        """
        if not (self.top.any() or self.left.any()) and (self.height == self.size[0]).all():
            return torch.where(self.mirrored[:, None, None, None], values.flip(-1), values)
        y, x = (
            place.floor().long().clamp(0, side - 1)
            for place, side in zip(self.places, self.size, strict=True)
        )
        # One by one and with channels last: three times as fast as one index for all.
        picked = [
            one.index_select(0, rows).index_select(1, columns)
            for one, rows, columns in zip(values.movedim(1, -1), y, x, strict=True)
        ]
        return torch.stack(picked).movedim(-1, 1)

    def bilinear(self, values: Tensor) -> Tensor:
        """Return real ``[B, C, H, W]`` read between pixels; beyond the edge it goes on as it is there."""
        y, x = (2 * place / side - 1 for place, side in zip(self.places, self.size, strict=True))
        across, down = x[:, None, :].expand(-1, y.shape[1], -1), y[:, :, None].expand(-1, -1, x.shape[1])
        grid = torch.stack([across, down], -1).to(values.dtype)
        return functional.grid_sample(values, grid, "bilinear", "border", align_corners=False)
