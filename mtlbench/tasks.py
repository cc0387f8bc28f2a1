"""The usual tasks, by kind: each with the loss and the metrics that the field uses for it.

A dataset may build its tasks from the parts in `mtlbench.losses` and `mtlbench.metrics`; these save it the
trouble. A data file declares its tasks by the same kinds (`make_tasks`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mtlbench.contracts import Map, Task, Vector
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


def depth(name: str, unit: str = "m") -> Task:
    """A positive distance (or its inverse) a pixel: float32 ``[B, 1, H, W]``; absolute and relative error."""
    return Task(name, Map(1), L1(), (abs_error(unit), rel_error()))


def normals(name: str) -> Task:
    """A unit vector a pixel: float32 ``[B, 3, H, W]``; mean and median angle, shares within `WITHIN`."""
    metrics = (angle_mean(), angle_median(), *map(angle_within, WITHIN))
    return Task(name, Map(3), Cosine(), metrics)


def box(name: str) -> Task:
    """A box xmin, ymin, xmax, ymax in 0..1: float32 ``[B, 4]``; IoU and L2 distance."""
    return Task(name, Vector(4), L1(), (box_iou(), box_l2()))


def regression(name: str, size: int = 1, unit: str = "1", scale: float = 1.0) -> Task:
    """Real numbers: float32 ``[B, size]``; MAE and RMSE times ``scale``, in ``unit``."""
    return Task(name, Vector(size), MSE(), (mae(unit, scale), rmse(unit, scale)))


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
}


def make_tasks(declared: Mapping[str, Mapping[str, Any]], where: str = "") -> tuple[Task, ...]:
    """Return the tasks of declarations such as ``{"seg": {"kind": "segmentation", "classes": 13}}``.

    ``auxiliary`` and ``missing`` (whether a sample may lack its label, see `may_lack`) are known to every
    kind. where: how errors name the source of the declarations.
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
            if key not in (*takes, "kind", "auxiliary", "missing"):
                raise MtlbenchError(f"{what}: a {kind} has no '{key}'.{did_you_mean(key, takes)}")
            if key != "kind" and not _RULES[key][1](value):
                raise MtlbenchError(f"{what}: '{key}' must be {_RULES[key][0]}, found {value!r}")
        for key, parameter in takes.items():
            if parameter.default is parameter.empty and key not in given:
                raise MtlbenchError(f"{what}: a {kind} needs '{key}', {_RULES[key][0]}")
        task = KINDS[kind](name, **{key: given[key] for key in takes if key in given})
        tasks.append(replace(task, auxiliary=given.get("auxiliary", False)))
    return tuple(tasks)


def may_lack(declared: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether a sample may lack the label of one of the declared tasks."""
    return any(given.get("missing", False) for given in declared.values())
