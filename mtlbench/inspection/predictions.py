"""What the model predicts for chosen samples, beside what is true.

How a task is drawn follows from what it predicts: `kind_of` decides, `_DRAW` draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from mtlbench.contracts import Map, Task
from mtlbench.inspection import style
from mtlbench.inspection.inside import picture_of
from mtlbench.inspection.passes import Seen, Shown
from mtlbench.inspection.picture import Picture, grid, number

TASKS = 5
"""Tasks in one picture; more go into further pictures."""
UNLABELLED = (0.62, 0.62, 0.62)
VALUES = 4
"""Values of a vector that are written beside a sample."""


@dataclass(frozen=True)
class Cell:
    """One sample of one task. image: as drawn; output: what the head gave; target: what is true."""

    task: Task
    image: NDArray[Any]
    output: Tensor
    target: Tensor


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
            return "normals" if any(metric.unit == "deg" for metric in task.metrics) else "image-map"
        return "value-map"
    if categorical:
        return "classes"
    boxes = task.output.size == 4 and any(metric.name.startswith("box") for metric in task.metrics)
    return "boxes" if boxes else "values"


def predictions(seen: Seen) -> Iterator[Picture]:
    """Yield pictures of inputs, predictions and targets of the chosen samples, a few tasks in each."""
    groups = [
        (shown, shown.tasks[start : start + TASKS])
        for shown in seen.shown
        for start in range(0, len(shown.tasks), TASKS)
    ]
    for position, (shown, names) in enumerate(groups):
        suffix = f"-{position + 1}" if len(groups) > 1 else ""
        yield _predictions(seen, shown, names, f"predictions{suffix}")


def _predictions(seen: Seen, shown: Shown, names: tuple[str, ...], file: str) -> Picture:
    tasks = [seen.tasks[name] for name in names]
    rows = [(task, part) for task in tasks for part in _ROWS[kind_of(task)]]
    heights = [1.0, *(_HEIGHTS.get(kind_of(task), 1.0) for task, _ in rows)]
    columns = len(shown.indices)
    figure, axes = style.panels(
        1 + len(rows),
        columns,
        (1.8 + 1.3 / columns, 1.75 * sum(heights) / len(heights)),
        f"Predictions on the {seen.split} split",
        layout="compressed",
        gridspec_kw={"height_ratios": heights},
    )
    limits = {task.name: _limits(shown, task) for task in tasks}
    numbers: dict[str, Any] = {str(index): {} for index in shown.indices}
    for column, index in enumerate(shown.indices):
        image = picture_of(shown.inputs[column])
        axes[0, column].imshow(image, cmap="gray", vmin=0, vmax=1)
        axes[0, column].set_title(f"sample {index}", fontsize=9, color=style.PALE)
        cells = {
            task.name: Cell(task, image, shown.outputs[task.name][column], shown.targets[task.name][column])
            for task in tasks
        }
        for name, cell in cells.items():
            numbers[str(index)][name] = _loss(cell) | _NUMBERS[kind_of(cell.task)](cell)
        for axis, (task, part) in zip(axes[1:, column], rows, strict=True):
            _DRAW[kind_of(task)](axis, cells[task.name], part, limits[task.name])
    style.row_label(axes[0, 0], "input")
    for axes_of_row, (task, part) in zip(axes[1:], rows, strict=True):
        style.row_label(axes_of_row[0], task.name if part in ("both", "text") else f"{task.name}\n{part}")
        if kind_of(task) == "value-map":
            style.colour_bar(axes_of_row[-1])
    for axis in axes.flat:
        style.bare(axis)
    return Picture(
        file,
        "Predictions beside targets",
        f"What the model predicts for some samples of the {seen.split} split, beside what is true. Blue or"
        " solid is true, orange or dashed is predicted where both are drawn into one image; grey has no"
        " label.",
        figure,
        {"split": seen.split, "samples": numbers},
    )


# ---- rows of a task: what is drawn one below the other --------------------------------------------------

_HEIGHTS = {"classes": 0.3, "values": 0.45}
"""Of a row of text, compared with one of pictures."""

_ROWS: Mapping[str, tuple[str, ...]] = {
    "classes": ("text",),
    "values": ("predicted\ntrue",),
    "boxes": ("both",),
    "class-map": ("target", "predicted"),
    "normals": ("target", "predicted"),
    "image-map": ("target", "predicted"),
    "value-map": ("target", "predicted"),
}


def _classes(axis: Axes, cell: Cell, part: str, limits: tuple[float, float]) -> None:
    label, chances = int(cell.target), _chances(cell)
    predicted = int(chances.argmax())
    right = label in (-1, predicted)
    text = f"predicted {predicted} ({float(chances[predicted]):.0%})\ntrue {'?' if label < 0 else label}"
    axis.text(0.5, 0.5, text, ha="center", va="center", color=style.INK if right else style.BAD,
              fontweight="normal" if right else "bold", transform=axis.transAxes)  # fmt: skip


def _values(axis: Axes, cell: Cell, part: str, limits: tuple[float, float]) -> None:
    output, target = cell.output.flatten()[:VALUES].tolist(), cell.target.flatten()[:VALUES].tolist()
    text = f"{_listed(output)}\n{_listed(target)}"
    axis.text(0.5, 0.36, text, ha="center", va="center", fontsize=9, transform=axis.transAxes)


def _boxes(axis: Axes, cell: Cell, part: str, limits: tuple[float, float]) -> None:
    axis.imshow(cell.image, cmap="gray", vmin=0, vmax=1)
    height, width = cell.image.shape[:2]
    looks: tuple[tuple[Tensor, str, Any], ...] = (
        (cell.target, style.PALETTE[5], "-"),
        (cell.output, style.PALETTE[4], (0, (3, 1.5))),
    )
    for box, colour, dashes in looks:
        if box.isnan().any():
            continue
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


def _class_map(axis: Axes, cell: Cell, part: str, limits: tuple[float, float]) -> None:
    labels = _labels(cell) if part == "predicted" else cell.target
    axis.imshow(_overlay(cell.image, labels.numpy(), cell.task))


def _normals(axis: Axes, cell: Cell, part: str, limits: tuple[float, float]) -> None:
    vectors = cell.output if part == "predicted" else cell.target
    unit = torch.nn.functional.normalize(vectors, dim=0)
    axis.imshow(_rgb((unit + 1) / 2))


def _image_map(axis: Axes, cell: Cell, part: str, limits: tuple[float, float]) -> None:
    axis.imshow(_rgb(cell.output if part == "predicted" else cell.target))


def _value_map(axis: Axes, cell: Cell, part: str, limits: tuple[float, float]) -> None:
    values = (cell.output if part == "predicted" else cell.target).float().mean(0).numpy()
    axis.set_facecolor(UNLABELLED)
    low, high = limits
    axis.imshow(np.ma.masked_invalid(values), cmap=style.SCALAR, vmin=low, vmax=high)


_DRAW: Mapping[str, Callable[[Axes, Cell, str, tuple[float, float]], None]] = {
    "classes": _classes,
    "values": _values,
    "boxes": _boxes,
    "class-map": _class_map,
    "normals": _normals,
    "image-map": _image_map,
    "value-map": _value_map,
}


# ---- numbers ----------------------------------------------------------------------------------------------


def _loss(cell: Cell) -> dict[str, Any]:
    total, count = cell.task.loss.terms(cell.output[None], cell.target[None])
    return {"loss": number(float(total / count)) if count else None}


def _class_numbers(cell: Cell) -> dict[str, Any]:
    chances = _chances(cell)
    label = int(cell.target)
    return {
        "predicted": int(chances.argmax()),
        "probabilities": [number(p) for p in chances.tolist()],
        "target": None if label < 0 else label,
    }


def _vector_numbers(cell: Cell) -> dict[str, Any]:
    return {
        key: [number(v) for v in values.flatten().tolist()]
        for key, values in (("predicted", cell.output), ("target", cell.target))
    }


def _class_map_numbers(cell: Cell) -> dict[str, Any]:
    return {"predicted": grid(_labels(cell).numpy()), "target": grid(cell.target.numpy())}


def _map_numbers(cell: Cell) -> dict[str, Any]:
    return {
        key: [grid(channel) for channel in values.float().numpy()]
        for key, values in (("predicted", cell.output), ("target", cell.target))
    }


_NUMBERS: Mapping[str, Callable[[Cell], dict[str, Any]]] = {
    "classes": _class_numbers,
    "values": _vector_numbers,
    "boxes": _vector_numbers,
    "class-map": _class_map_numbers,
    "normals": _map_numbers,
    "image-map": _map_numbers,
    "value-map": _map_numbers,
}


# ---- parts ------------------------------------------------------------------------------------------------


def _chances(cell: Cell) -> Tensor:
    """Return the probabilities of the classes; of one logit, those of 0 and 1."""
    logits = cell.output.double().flatten()
    return (
        torch.stack([torch.zeros(()).double(), logits[0]]).softmax(0)
        if len(logits) == 1
        else logits.softmax(0)
    )


def _labels(cell: Cell) -> Tensor:
    """Return the predicted class of every pixel, ``[H, W]``."""
    return (cell.output[0] > 0).long() if len(cell.output) == 1 else cell.output.argmax(0)


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


def _limits(shown: Shown, task: Task) -> tuple[float, float]:
    """Return the range that all maps of a task are drawn in: of its targets and outputs together."""
    if kind_of(task) != "value-map":
        return 0.0, 1.0
    values = torch.cat([shown.outputs[task.name].flatten(), shown.targets[task.name].flatten()])
    known = values[values.isfinite()]
    return (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)


def _listed(values: list[float]) -> str:
    return "  ".join("?" if np.isnan(value) else f"{value:.2f}" for value in values)
