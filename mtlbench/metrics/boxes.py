"""Metrics of bounding boxes.

A box is ``(xmin, ymin, xmax, ymax)``, normalised by width and height of the image to 0..1. Outputs and
targets are ``[B, 4]``; a target with a NaN among its four coordinates has no label and is ignored. With no
label at all a score is ``float("nan")``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torchmetrics
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from mtlbench.contracts import Metric


class BoxScore(torchmetrics.Metric):
    """Mean over the labelled boxes of ``score(output [N, 4], target [N, 4]) -> [N]``.

    The boxes are kept until the end, so that the mean does not depend on the batches. What is kept does not
    depend on ``score``, so several of these can share it.
    """

    full_state_update = False
    outputs: list[Tensor] | Tensor
    targets: list[Tensor] | Tensor

    def __init__(self, score: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.score = score
        self.add_state("outputs", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Keep the labelled ones of a batch of boxes ``[B, 4]``."""
        assert isinstance(self.outputs, list)
        assert isinstance(self.targets, list)
        labelled = ~target.isnan().any(1)
        self.outputs.append(output[labelled])
        self.targets.append(target[labelled])

    def compute(self) -> Tensor:
        """Return the mean, a float64 scalar."""
        outputs, targets = (_joined(boxes).cpu().double() for boxes in (self.outputs, self.targets))
        return self.score(outputs, targets).mean()


def _joined(boxes: list[Tensor] | Tensor) -> Tensor:
    return dim_zero_cat(boxes) if len(boxes) else torch.empty(0, 4)


def _area(boxes: Tensor) -> Tensor:
    """Return the areas ``[N]`` of boxes ``[N, 4]``; 0 for a box that ends before it starts."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)


def _iou(output: Tensor, target: Tensor) -> Tensor:
    common = torch.cat(
        [torch.maximum(output[:, :2], target[:, :2]), torch.minimum(output[:, 2:], target[:, 2:])], dim=1
    )
    both = _area(common)
    either = _area(output) + _area(target) - both
    return torch.where(either == 0, 0, both / either)


def _distance(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().sum(1).sqrt()


def box_iou() -> Metric:
    """Intersection over union of the predicted and the true box, in 0..1, averaged over boxes.

    A predicted box that ends before it starts has area 0 and scores 0; so do two boxes without area.
    """
    return Metric("box_iou", partial(BoxScore, _iou), higher_is_better=True, state="boxes")


def box_l2() -> Metric:
    """Euclidean distance of the predicted and the true box, as vectors of four, averaged over boxes.

    ``sqrt(dxmin^2 + dymin^2 + dxmax^2 + dymax^2)`` in normalised coordinates: 0 is perfect, and it is at
    most 2 while predictions stay in 0..1.
    """
    return Metric("box_l2", partial(BoxScore, _distance), higher_is_better=False, state="boxes")
