"""A picture and what it is made of."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

MOST = 64
"""Values along one side of a map that go into the JSON; of a larger map every second, third … one does."""


@dataclass(frozen=True)
class Picture:
    """A drawing, its numbers and the words to read it by.

    name: of its files. title: a few words. caption: what is to be seen, for somebody who sees such a picture
    for the first time. numbers: everything that is drawn, as JSON takes it.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    numbers: Mapping[str, Any]

    def dumps(self) -> str:
        """Return the JSON file's text; equal for equal numbers, with lists on one line."""
        return _json(self.numbers, "") + "\n"


def grid(values: NDArray[Any]) -> dict[str, Any]:
    """Return a map ``[H, W]`` for the JSON: its values to five digits, its shape, the step between values."""
    step = max(math.ceil(max(values.shape) / MOST), 1)
    thin = values[::step, ::step]
    rows = [[number(v) for v in row] for row in thin.tolist()]
    return {"shape": list(values.shape), "every": step, "values": rows}


def number(value: float) -> float | int | None:
    """Return a number to five significant digits; None where it is not finite."""
    if isinstance(value, int):
        return value
    return float(f"{value:.5g}") if np.isfinite(value) else None


def _json(value: Any, margin: str) -> str:
    if not isinstance(value, Mapping) or not value:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    inner = margin + " "
    items = (f"{inner}{json.dumps(key, ensure_ascii=False)}: {_json(v, inner)}" for key, v in value.items())
    return "{\n" + ",\n".join(items) + f"\n{margin}}}"
