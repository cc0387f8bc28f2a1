"""What encoders that other libraries bring have in common: they are measured, not known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.contracts import PyramidShape


def measure(stages: nn.ModuleList, x: Tensor) -> PyramidShape:
    """Return the channels and strides that the stages have for images of the size of ``x`` ``[B, C, H, W]``.

    Parameters that play no part in the features (a mask token, a norm for another level) are frozen, since
    nothing would ever train them.
    """
    was_training, size = stages.training, x.shape[2]
    stages.eval()  # leaves running statistics alone
    pyramid = []
    parameters = list(stages.parameters())
    with torch.enable_grad():
        for stage in stages:
            x = stage(x)
            pyramid.append(x)
        total = torch.stack([level.square().sum() for level in pyramid]).sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    stages.train(was_training)
    channels = tuple(level.shape[1] for level in pyramid)
    return PyramidShape(channels, tuple(round(size / level.shape[2]) for level in pyramid))


class LastMap(nn.Module):
    """A whole backbone as one stage: gives its last feature map."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, C, h, w]`` for ``x`` ``[B, in_channels, H, W]``."""
        found: Any = self.backbone(x)
        last: Tensor = getattr(found, "feature_maps", found)[-1]
        return last


def line(error: Exception) -> str:
    """Return the first sentence of an error that another library wrote for a page."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}{'…' if len(text) > 200 else ''}"
