"""What the model predicts for chosen samples, beside what is true.

How a task is drawn follows from what it predicts: `kind_of` decides, `_DRAW` draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from mtlbench.contracts import Task
from mtlbench.inspection import style
from mtlbench.inspection.inside import picture_of
from mtlbench.inspection.passes import Seen, Shown
from mtlbench.inspection.picture import Picture, grid, number
from mtlbench.inspection.targets import VALUES, draw_box, draw_map, kind_of, limits_of, listed

TASKS = 5
"""Tasks in one picture; more go into further pictures."""


@dataclass(frozen=True)
class Cell:
    """One sample of one task. image: as drawn; output: what the head gave; target: what is true."""

    task: Task
    image: NDArray[Any]
    output: Tensor
    target: Tensor


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
    output, target = cell.output.flatten()[:VALUES], cell.target.flatten()[:VALUES]
    text = f"{listed(output)}\n{listed(target)}"
    axis.text(0.5, 0.36, text, ha="center", va="center", fontsize=9, transform=axis.transAxes)


def _boxes(axis: Axes, cell: Cell, part: str, limits: tuple[float, float]) -> None:
    axis.imshow(cell.image, cmap="gray", vmin=0, vmax=1)
    draw_box(axis, cell.image, cell.target, style.PALETTE[5])
    draw_box(axis, cell.image, cell.output, style.PALETTE[4], (0, (3, 1.5)))


def _map(axis: Axes, cell: Cell, part: str, limits: tuple[float, float]) -> None:
    if part == "target":
        values = cell.target
    else:
        values = _labels(cell) if kind_of(cell.task) == "class-map" else cell.output
    draw_map(axis, cell.task, cell.image, values, limits)


_DRAW: Mapping[str, Callable[[Axes, Cell, str, tuple[float, float]], None]] = {
    "classes": _classes,
    "values": _values,
    "boxes": _boxes,
    "class-map": _map,
    "normals": _map,
    "image-map": _map,
    "value-map": _map,
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


def _limits(shown: Shown, task: Task) -> tuple[float, float]:
    """Return the range that all maps of a task are drawn in: of its targets and outputs together."""
    return limits_of(task, shown.outputs[task.name], shown.targets[task.name])
