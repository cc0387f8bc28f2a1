"""How well a task is solved: metrics that accumulate over a split and score once."""

from mtlbench.metrics.boxes import box_iou, box_l2
from mtlbench.metrics.classes import accuracy, dice, f1, iou, pixel_accuracy

__all__ = ["accuracy", "box_iou", "box_l2", "dice", "f1", "iou", "pixel_accuracy"]
