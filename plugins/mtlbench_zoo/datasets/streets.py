"""Rendered streets: the stand-in for photographs from a car."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mtlbench.data.prepared import Declared, Row
from mtlbench_zoo.datasets._render import Camera, Look, Scene, Texture, Triple, View, cast, paint
from mtlbench_zoo.datasets._rendered import Rendered

CLASSES = ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
FAR = 100.0
"""Metres beyond which depth counts as unknown, as it does for a stereo camera."""


class Streets(Rendered):
    """Rendered streets with exact geometry, two tasks: 7 classes a pixel, and inverse depth.

    The tasks, losses and metrics are those of `cityscapes`, whose stand-in this is, with the same 7 groups:
    flat (road and pavement), construction, object (poles, signs), nature, sky, human, vehicle. Inverse
    depth is one over the metres along the camera's z; it is unknown for the sky and beyond 100 m.

    size: height of the images, half of the width. 400 training scenes, 100 val, 100 test; they are rendered
    when they are first asked for and kept in the data folder. A stand-in shows that things work; draw no
    conclusions about photographs from it.
    """

    name = "streets"
    title = "streets (rendered)"
    seed = 700
    generated = "streets, version 1"
    declared: ClassVar[Declared] = {
        "segmentation": {"kind": "segmentation", "classes": len(CLASSES)},
        "depth": {"kind": "depth", "unit": "1/m", "inverse": True},
    }

    @classmethod
    def row(cls, source: Path, item: Any, size: int) -> Row:
        """Return one scene."""
        view, labels, draw = render(item, size)
        inverse = np.where(view.depth < FAR, 1 / view.depth, np.nan)
        return Row(
            paint(view, draw), {"segmentation": labels, "depth": inverse[..., None].astype(np.float32)}
        )


def render(number: int, size: int) -> tuple[View, np.ndarray, np.random.RandomState]:
    """Return what is seen of the street of this number, its labels, and the generator that goes on."""
    draw = Streets.generator(number)
    scene, camera = lay_out(draw)
    x, z = draw.uniform(-0.7, 0.7), draw.uniform(-0.7, 0.2)
    length = float(np.sqrt(x * x + z * z + 1))
    view = cast(scene, camera, size, 2 * size, light=(x / length, 1 / length, z / length))
    return view, view.labels(sky=CLASSES.index("sky")), draw


def lay_out(draw: np.random.RandomState) -> tuple[Scene, Camera]:
    """Return a street with what stands and moves on it, and the camera of a car on the right lane."""
    half, walk = draw.uniform(3.2, 5), draw.uniform(1.6, 3)
    scene = Scene(ground=_look(draw, "nature", (0.2, 0.35, 0.1), "checks", 0.5))
    road, stone = _look(draw, "flat", (0.3, 0.3, 0.3)), _look(draw, "flat", (0.5, 0.48, 0.45), "bricks", 0.5)
    scene.boxes.append(((-half, -1, -9), (half, 0.02, 500), road))
    line = Look(CLASSES.index("flat"), (0.9, 0.9, 0.9))
    scene.boxes += [((-0.08, -1, z), (0.08, 0.021, z + 3), line) for z in np.arange(2.0, 80, 9).tolist()]
    for side in (-1, 1):
        scene.boxes.append((*_span(side, half, half + walk, -1, 0.15, -9, 500), stone))
        _front(scene, side, half + walk, draw)
        _pavement(scene, side, half, walk, draw)
    z = draw.uniform(6, 14)
    while z < 70:
        _vehicle(scene, draw.choice([-1, 1]) * half / 2, z, draw)
        z += draw.uniform(7, 30)
    eye = (draw.uniform(0.35, 0.65) * half, draw.uniform(1.2, 1.6), 0.0)
    return scene, Camera(eye, draw.uniform(-0.06, 0.06), draw.uniform(0, 0.05))


def _span(
    side: int, near: float, far: float, low: float, high: float, start: float, stop: float
) -> tuple[Triple, Triple]:
    """Return the corners of a box from ``near`` to ``far`` metres to one side of the road's middle."""
    x0, x1 = sorted((side * near, side * far))
    return (x0, low, start), (x1, high, stop)


def _look(
    draw: np.random.RandomState, name: str, about: Triple, texture: Texture = "plain", scale: float = 0.3
) -> Look:
    red, green, blue = (min(max(c + draw.uniform(-0.12, 0.12), 0.0), 1.0) for c in about)
    return Look(CLASSES.index(name), (red, green, blue), texture, scale)


def _any(draw: np.random.RandomState) -> Triple:
    red, green, blue = draw.uniform(0.1, 0.9, 3)
    return red, green, blue


def _front(scene: Scene, side: int, start: float, draw: np.random.RandomState) -> None:
    """Put houses, walls and trees along one side."""
    textures: tuple[Texture, ...] = ("plain", "checks", "stripes", "bricks")
    z = draw.uniform(-8, 0)
    while z < 120:
        wide, back, kind = draw.uniform(6, 14), start + draw.uniform(0, 4), draw.random_sample()
        if kind < 0.55:
            look = _look(draw, "construction", _any(draw), textures[draw.randint(4)], draw.uniform(0.5, 2))
            scene.boxes.append((*_span(side, back, back + 10, -1, draw.uniform(4, 18), z, z + wide), look))
        elif kind < 0.65:
            look = _look(draw, "construction", _any(draw), "stripes", 0.4)
            scene.boxes.append((*_span(side, start, start + 0.2, -1, draw.uniform(1, 2), z, z + wide), look))
        else:
            crown, trunk = draw.uniform(1.2, 2.4), draw.uniform(1.5, 3)
            green = _look(draw, "nature", (0.2, 0.45, 0.15), "checks", 0.4)
            x = back + crown
            scene.boxes.append((*_span(side, x - 0.15, x + 0.15, -1, trunk + 0.5, z + 1, z + 1.3), green))
            scene.spheres.append(((side * x, trunk + crown * 0.8, z + 1.15), crown, green))
            wide = 2 * crown
        z += wide + draw.uniform(0, 5)


def _pavement(scene: Scene, side: int, half: float, walk: float, draw: np.random.RandomState) -> None:
    """Put poles with signs and people on the pavement of one side."""
    z = draw.uniform(5, 20)
    while z < 80:
        look, x = _look(draw, "object", (0.4, 0.4, 0.42)), half + 0.3
        top = draw.uniform(2.5, 6)
        scene.boxes.append((*_span(side, x, x + 0.12, 0, top, z, z + 0.12), look))
        if draw.random_sample() < 0.6:
            sign = _look(draw, "object", _any(draw))
            scene.boxes.append((*_span(side, x - 0.3, x + 0.42, top - 0.7, top, z - 0.04, z), sign))
        z += draw.uniform(10, 25)
    for _ in range(draw.randint(0, 4)):
        x, z, tall = half + draw.uniform(0.7, walk - 0.3), draw.uniform(6, 35), draw.uniform(1.1, 1.6)
        look = _look(draw, "human", _any(draw))
        scene.boxes.append((*_span(side, x - 0.23, x + 0.23, 0.15, tall, z - 0.15, z + 0.15), look))
        scene.spheres.append(((side * x, tall + 0.13, z), 0.14, _look(draw, "human", (0.7, 0.55, 0.45))))


def _vehicle(scene: Scene, x: float, z: float, draw: np.random.RandomState) -> None:
    """Put a car or a van on the road."""
    paint_, wheel = _look(draw, "vehicle", _any(draw)), Look(CLASSES.index("vehicle"), (0.05, 0.05, 0.05))
    if draw.random_sample() < 0.25:
        scene.boxes.append(((x - 1.2, 0.35, z), (x + 1.2, draw.uniform(2.3, 3.4), z + 6), paint_))
    else:
        scene.boxes.append(((x - 0.9, 0.3, z), (x + 0.9, 0.9, z + 4.2), paint_))
        scene.boxes.append(((x - 0.75, 0.9, z + 0.8), (x + 0.75, 1.5, z + 3.2), paint_))
    for across in (x - 0.8, x + 0.6):
        scene.boxes.append(((across, 0.02, z + 0.5), (across + 0.2, 0.6, z + 1.1), wheel))
