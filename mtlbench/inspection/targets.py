"""How values of a task are drawn, targets and predictions alike; and contact sheets of a dataset's targets.

How a task is drawn follows from what it predicts: `kind_of` decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from mtlbench.contracts import Batch, Dataset, Map, SplitName, Task
from mtlbench.data.augment import Augment
from mtlbench.inspection import style
from mtlbench.inspection.inside import picture_of
from mtlbench.inspection.passes import chosen
from mtlbench.tasks import is_box, is_normals
from mtlbench.training.augmented import augmented

UNLABELLED = (0.62, 0.62, 0.62)
VALUES = 4
"""Values of a vector that are written beside a sample."""
ACROSS = 8
"""Samples side by side on a contact sheet."""


def kind_of(task: Task) -> str:
    """Return how a task is drawn: one of ``classes boxes values class-map normals image-map value-map``.

    By the shape of its output, by whether its loss is that of a categorical variable, and by its metrics:
    boxes are what is scored as boxes, directions what is scored in degrees.
    """
    categorical = task.loss.likelihood == "categorical"
    if isinstance(task.output, Map):
        if categorical:
            return "class-map"
        if task.output.channels == 3:
            return "normals" if is_normals(task) else "image-map"
        return "value-map"
    if categorical:
        return "classes"
    return "boxes" if is_box(task) else "values"


def draw_box(axis: Axes, image: NDArray[Any], box: Tensor, colour: str, dashes: Any = "-") -> None:
    """Draw a box (xmin, ymin, xmax, ymax in 0..1) over an image that is shown; nothing where it has none."""
    if box.isnan().any():
        return
    height, width = image.shape[:2]
    left, top, right, bottom = (box.double() * torch.tensor([width, height] * 2)).tolist()
    for line, edge in ((3.6, "black"), (2.0, colour)):  # a dark rim, to be seen on any photo
        corner = (left - 0.5, top - 0.5)
        axis.add_patch(
            Rectangle(
                corner,
                right - left,
                bottom - top,
                fill=False,
                edgecolor=edge,
                linewidth=line,
                linestyle=dashes,
            )
        )


def draw_map(
    axis: Axes, task: Task, image: NDArray[Any], values: Tensor, limits: tuple[float, float]
) -> None:
    """Draw a map of a task.

    values: labels int64 ``[H, W]``, or real ``[C, H, W]``. limits: of single values, see `limits_of`.
    """
    kind = kind_of(task)
    if kind == "class-map":
        axis.imshow(_overlay(image, values.numpy(), task))
    elif kind == "normals":
        axis.imshow(_rgb((torch.nn.functional.normalize(values, dim=0) + 1) / 2))
    elif kind == "image-map":
        axis.imshow(_rgb(values))
    else:
        axis.set_facecolor(UNLABELLED)
        low, high = limits
        shown = np.ma.masked_invalid(values.float().mean(0).numpy())
        axis.imshow(shown, cmap=style.SCALAR, vmin=low, vmax=high)


def limits_of(task: Task, *values: Tensor) -> tuple[float, float]:
    """Return the range that all maps of a task are drawn in."""
    if kind_of(task) != "value-map":
        return 0.0, 1.0
    every = torch.cat([value.flatten() for value in values])
    known = every[every.isfinite()]
    return (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)


def listed(values: Tensor) -> str:
    """Return numbers as a text, ``?`` for a missing one."""
    return "  ".join("?" if np.isnan(value) else f"{value:.2f}" for value in values.flatten().tolist())


def _overlay(image: NDArray[Any], labels: NDArray[Any], task: Task) -> NDArray[Any]:
    """Return the image in grey with the classes as colours over it; of one logit only the foreground."""
    grey = image.mean(-1) if image.ndim == 3 else image
    base = np.repeat(0.25 + 0.6 * grey[..., None], 3, axis=2)
    assert isinstance(task.output, Map)
    binary = task.output.channels == 1
    for label in np.unique(labels):
        if label == 0 and binary:
            continue
        colour = UNLABELLED if label < 0 else to_rgb(style.GOOD) if binary else _class_colour(int(label))
        base[labels == label] = 0.4 * base[labels == label] + 0.6 * np.array(colour)
    return base


def _class_colour(label: int) -> tuple[float, float, float]:
    """Return one of 20 colours, the distinct ones first."""
    if label < len(style.PALETTE):
        return to_rgb(style.PALETTE[label])
    return to_rgb(mpl.colormaps["tab20"](label % 20))


def _rgb(values: Tensor) -> NDArray[Any]:
    """Return ``[3, H, W]`` in 0..1 as ``[H, W, 3]``, grey where there is no label."""
    pixels: NDArray[Any] = values.clamp(0, 1).float().numpy().transpose(1, 2, 0).copy()
    pixels[np.isnan(pixels).any(-1)] = UNLABELLED
    return pixels


# ---- contact sheets ---------------------------------------------------------------------------------------


def contact_sheet(
    dataset: Dataset,
    split: SplitName,
    images: Sequence[int] | None,
    count: int,
    augment: Augment | None = None,
) -> Figure:
    """Return samples of a split with all their targets, eight side by side.

    images: which samples; None: ``count``, evenly spaced. augment: what is done to them, drawn as in the
    first epoch of seed 0. Boxes are drawn into the input, maps below it, and labels and numbers are written
    below. Tasks with inputs of their own come one after another.
    """
    parts = dataset.split(split)
    groups = (
        [(augmented(parts[task.name], augment, 0, 0, task.name), [task]) for task in dataset.tasks]
        if isinstance(parts, Mapping)
        else [(augmented(parts, augment, 0, 0, ""), list(dataset.tasks))]
    )
    bands = []
    for part, tasks in groups:
        indices = chosen(images, len(part), split, count)
        for start in range(0, len(indices), ACROSS):
            some = indices[start : start + ACROSS]
            bands.append(_Band(some, part.fetch(torch.tensor(some)).to(torch.device("cpu")), tasks))
    columns = max(len(band.indices) for band in bands)
    heights = [height for band in bands for height in band.heights]
    figure, axes = style.panels(
        len(heights),
        columns,
        (1.6 + 1.3 / columns, sum(heights) / len(heights)),
        f"{dataset.title}: {split} split" + (f", {augment}" if augment else ""),
        layout="compressed",
        gridspec_kw={"height_ratios": heights},
    )
    row = 0
    for band in bands:
        band.draw(axes[row : row + len(band.heights)])
        row += len(band.heights)
    for axis in axes.flat:
        style.bare(axis)
    return figure


class _Band:
    """Samples side by side, and the rows of what is drawn of them. heights: of the rows, in inches."""

    def __init__(self, indices: Sequence[int], batch: Batch, tasks: Sequence[Task]) -> None:
        self.indices, self.batch = indices, batch
        self.maps = [task for task in tasks if isinstance(task.output, Map)]
        self.boxes = [task for task in tasks if kind_of(task) == "boxes"]
        self.words = [task for task in tasks if task not in (*self.maps, *self.boxes)]
        height, width = picture_of(batch.inputs[0]).shape[:2]
        picture = 1.75 * min(max(height / width, 0.3), 2)
        words = [0.15 + 0.15 * len(self.words)] if self.words else []
        self.heights = [picture] * (1 + len(self.maps)) + words

    def draw(self, axes: NDArray[Any]) -> None:
        """Draw into the rows of axes ``[rows, columns]``."""
        targets = self.batch.targets
        limits = {task.name: limits_of(task, targets[task.name]) for task in self.maps}
        for column, index in enumerate(self.indices):
            image = picture_of(self.batch.inputs[column])
            inputs = axes[0, column]
            inputs.imshow(image, cmap="gray", vmin=0, vmax=1)
            inputs.set_title(f"sample {index}", fontsize=9, color=style.PALE)
            for task in self.boxes:
                draw_box(inputs, image, targets[task.name][column], style.PALETTE[5])
            for axis, task in zip(axes[1:, column], self.maps, strict=False):
                draw_map(axis, task, image, targets[task.name][column], limits[task.name])
            if self.words:
                self._write(axes[-1, column], column)
        boxes = "".join(f"\n{task.name}" for task in self.boxes)
        style.row_label(axes[0, 0], f"input{boxes}")
        for axes_of_row, task in zip(axes[1:], self.maps, strict=False):
            style.row_label(axes_of_row[0], task.name)
            if kind_of(task) == "value-map" and any(axis.images for axis in axes_of_row):
                style.colour_bar(axes_of_row[len(self.indices) - 1])

    def _write(self, axis: Axes, column: int) -> None:
        """Write the labels and numbers of a sample, a line a task."""
        words = [_word(task, self.batch.targets[task.name][column]) for task in self.words]
        axis.text(0.5, 0.5, "\n".join(words), ha="center", va="center", fontsize=8, transform=axis.transAxes)


def _word(task: Task, target: Tensor) -> str:
    if kind_of(task) == "classes":
        return f"{task.name} {'?' if int(target) < 0 else int(target)}"
    return f"{task.name} {listed(target.flatten()[:VALUES])}"
