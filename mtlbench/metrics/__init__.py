"""How well a task is solved: metrics that accumulate over a split and score once."""

from mtlbench.metrics.angles import angle_mean, angle_median, angle_within
from mtlbench.metrics.boxes import box_iou, box_l2
from mtlbench.metrics.classes import accuracy, dice, f1, iou, pixel_accuracy
from mtlbench.metrics.errors import abs_error, mae, mse, psnr, rel_error, rmse

__all__ = [
    "abs_error",
    "accuracy",
    "angle_mean",
    "angle_median",
    "angle_within",
    "box_iou",
    "box_l2",
    "dice",
    "f1",
    "iou",
    "mae",
    "mse",
    "pixel_accuracy",
    "psnr",
    "rel_error",
    "rmse",
]
