"""The usual tasks, by kind: each with the loss and the metrics that the field uses for it.

A dataset may build its tasks from the parts in `mtlbench.losses` and `mtlbench.metrics`; these save it the
trouble. A data file declares its tasks by the same kinds (`make_tasks`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mtlbench.contracts import Map, Moves, Task, Vector
from mtlbench.errors import MtlbenchError, did_you_mean
from mtlbench.losses import L1, MSE, BinaryCrossEntropy, Cosine, CrossEntropy
from mtlbench.metrics import (
    abs_error,
    accuracy,
    angle_mean,
    angle_median,
    angle_within,
    box_iou,
    box_l2,
    dice,
    f1,
    iou,
    mae,
    pixel_accuracy,
    rel_error,
    rmse,
)

WITHIN = (11.25, 22.5, 30.0)
"""The angles that the literature counts normals within, in degrees."""


def classification(name: str, classes: int) -> Task:
    """One of ``classes`` labels a sample: int64 ``[B]``; accuracy and F1."""
    return Task(name, Vector(classes), CrossEntropy(), (accuracy(classes), f1(classes)))


def binary(name: str) -> Task:
    """A label 0 or 1 a sample, from one logit: int64 ``[B]``; accuracy and F1."""
    return Task(name, Vector(1), BinaryCrossEntropy(), (accuracy(), f1()))


def segmentation(name: str, classes: int) -> Task:
    """One of ``classes`` labels a pixel: int64 ``[B, H, W]``; mean IoU and pixel accuracy."""
    return Task(name, Map(classes), CrossEntropy(), (iou(classes), pixel_accuracy(classes)))


def mask(name: str) -> Task:
    """A label 0 or 1 a pixel, from one logit: int64 ``[B, H, W]``; IoU, Dice and pixel accuracy."""
    return Task(name, Map(1), BinaryCrossEntropy(), (iou(), dice(), pixel_accuracy()))


def depth(name: str, unit: str = "m", inverse: bool = False) -> Task:
    """A positive distance (or its inverse) a pixel: float32 ``[B, 1, H, W]``; absolute and relative error."""
    moves: Moves = "inverse-depth" if inverse else "depth"
    return Task(name, Map(1), L1(), (abs_error(unit), rel_error()), moves=moves)


def normals(name: str) -> Task:
    """A unit vector a pixel: float32 ``[B, 3, H, W]``; mean and median angle, shares within `WITHIN`."""
    metrics = (angle_mean(), angle_median(), *map(angle_within, WITHIN))
    return Task(name, Map(3), Cosine(), metrics)


def box(name: str) -> Task:
    """A box xmin, ymin, xmax, ymax in 0..1: float32 ``[B, 4]``; IoU and L2 distance."""
    return Task(name, Vector(4), L1(), (box_iou(), box_l2()))


def regression(name: str, size: int = 1, unit: str = "1", scale: float = 1.0, fixed: bool = False) -> Task:
    """Real numbers: float32 ``[B, size]``; MAE and RMSE times ``scale``, in ``unit``.

    fixed: whether they stay what they are when an image is flipped, cropped or zoomed, as a weight does and a
    place does not.
    """
    metrics = (mae(unit, scale), rmse(unit, scale))
    return Task(name, Vector(size), MSE(), metrics, moves="fixed" if fixed else None)


def is_box(task: Task) -> bool:
    """Return whether a task's target is a box: four numbers that are scored as a box."""
    return task.output == Vector(4) and any(metric.name.startswith("box") for metric in task.metrics)


def is_normals(task: Task) -> bool:
    """Return whether a task's target is a map of directions: three channels that are scored in degrees."""
    return task.output == Map(3) and any(metric.unit == "deg" for metric in task.metrics)


def check_moves(task: Task, what: str) -> None:
    """Refuse a task whose ``moves`` is not for its output, or whose ``mirror`` is not for its classes.

    what: how to call it.
    """
    size = task.output.size if isinstance(task.output, Vector) else task.output.channels
    shape = "vector" if isinstance(task.output, Vector) else "map"
    fits = {
        "box": shape == "vector" and size == 4,
        "normals": shape == "map" and size == 3,
        **dict.fromkeys(("map", "depth", "inverse-depth"), shape == "map"),
    }
    if task.moves is not None and not fits.get(task.moves, True):
        raise MtlbenchError(f"{what}: moves='{task.moves}' is not for a {shape} of {size}")
    if isinstance(task.mirror, bool):
        return
    classes = max(size, 2) if task.loss.likelihood == "categorical" else 0
    if len(task.mirror) != classes or not set(task.mirror) <= set(range(classes)):
        raise MtlbenchError(
            f"{what}: 'mirror' must name one of its {classes} classes for each of them, found"
            f" {list(task.mirror)}"
        )


KINDS: dict[str, Callable[..., Task]] = {
    kind.__name__: kind
    for kind in (binary, box, classification, depth, mask, normals, regression, segmentation)
}
"""All kinds by name; what a kind takes beside the task's name is what a declaration of it may hold."""

_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "classes": ("an integer from 2", lambda value: type(value) is int and value >= 2),
    "size": ("an integer from 1", lambda value: type(value) is int and value >= 1),
    "unit": ("a text", lambda value: isinstance(value, str) and bool(value)),
    "scale": ("a number above 0", lambda value: type(value) in (int, float) and value > 0),
    "auxiliary": ("true or false", lambda value: isinstance(value, bool)),
    "missing": ("true or false", lambda value: isinstance(value, bool)),
    "inverse": ("true or false", lambda value: isinstance(value, bool)),
    "fixed": ("true or false", lambda value: isinstance(value, bool)),
    "mirror": (
        "true, false or a list of classes",
        lambda value: (
            isinstance(value, bool)
            or (isinstance(value, (list, tuple)) and all(type(item) is int for item in value))
        ),
    ),
}


def make_tasks(declared: Mapping[str, Mapping[str, Any]], where: str = "") -> tuple[Task, ...]:
    """Return the tasks of declarations such as ``{"seg": {"kind": "segmentation", "classes": 13}}``.

    ``auxiliary``, ``mirror`` (see `Task`) and ``missing`` (whether a sample may lack its label, see
    `may_lack`) are known to every kind. where: how errors name the source of the declarations.
    """
    tasks = []
    for name, given in declared.items():
        what = f"{where}task '{name}'"
        if not isinstance(given, Mapping) or "kind" not in given:
            raise MtlbenchError(f'{what} declares no kind, as in {{"kind": "binary"}}')
        kind = given["kind"]
        if kind not in KINDS:
            near = did_you_mean(str(kind), KINDS)
            raise MtlbenchError(f"{what}: unknown kind '{kind}'.{near} Kinds: {', '.join(KINDS)}")
        takes = dict(list(inspect.signature(KINDS[kind]).parameters.items())[1:])
        for key, value in given.items():
            if key not in (*takes, "kind", "auxiliary", "mirror", "missing"):
                raise MtlbenchError(f"{what}: a {kind} has no '{key}'.{did_you_mean(key, takes)}")
            if key != "kind" and not _RULES[key][1](value):
                raise MtlbenchError(f"{what}: '{key}' must be {_RULES[key][0]}, found {value!r}")
        for key, parameter in takes.items():
            if parameter.default is parameter.empty and key not in given:
                raise MtlbenchError(f"{what}: a {kind} needs '{key}', {_RULES[key][0]}")
        task = KINDS[kind](name, **{key: given[key] for key in takes if key in given})
        mirror = given.get("mirror", True)
        task = replace(
            task,
            auxiliary=given.get("auxiliary", False),
            mirror=mirror if isinstance(mirror, bool) else tuple(mirror),
        )
        check_moves(task, what)
        tasks.append(task)
    return tuple(tasks)


def may_lack(declared: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether a sample may lack the label of one of the declared tasks."""
    return any(given.get("missing", False) for given in declared.values())
