"""Rendered rooms: the stand-in for indoor photographs with depth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mtlbench.data.prepared import Declared, Row
from mtlbench_zoo.datasets._render import Camera, Look, Scene, Texture, Triple, View, cast, paint
from mtlbench_zoo.datasets._rendered import Rendered

CLASSES = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects",
    "picture", "sofa", "table", "tv", "wall", "window",
)  # fmt: skip

Solid = tuple[Triple, Triple, str]
"""Low corner, high corner and class of a box of a piece of furniture, with its own corner at the origin."""


class Rooms(Rendered):
    """Rendered rooms with exact geometry, three tasks: 13 classes a pixel, depth, surface normals.

    The tasks, losses and metrics are those of `nyuv2`, whose stand-in this is, with the same 13 classes:
    bed, books, ceiling, chair, floor, furniture, objects, picture, sofa, table, tv, wall, window. Rooms of
    random size are furnished at random, lit, textured and seen by a camera of random place and direction.
    Every pixel has all three labels: depth in metres along the camera's z, and unit normals in its
    frame (x right, y down, z ahead). The focal length is 0.7 widths of the image, the centre its middle.

    size: height of the images, 2/3 of the width. 400 training scenes, 100 val, 100 test; they are rendered
    when they are first asked for and kept in the data folder. A stand-in shows that things work; draw no
    conclusions about photographs from it.
    """

    name = "rooms"
    title = "rooms (rendered)"
    seed = 1300
    generated = "rooms, version 1"
    declared: ClassVar[Declared] = {
        "segmentation": {"kind": "segmentation", "classes": len(CLASSES)},
        "depth": {"kind": "depth", "unit": "m"},
        "normals": {"kind": "normals"},
    }

    @classmethod
    def row(cls, source: Path, item: Any, size: int) -> Row:
        """Return one scene."""
        view, draw = render(item, size)
        targets = {
            "segmentation": view.labels(),
            "depth": view.depth[..., None].astype(np.float32),
            "normals": view.normals.astype(np.float16),
        }
        return Row(paint(view, draw), targets)


def render(number: int, size: int) -> tuple[View, np.random.RandomState]:
    """Return what is seen of the room of this number, and the generator for what comes after."""
    draw = Rooms.generator(number)
    scene, camera = furnish(draw)
    return cast(scene, camera, size, size * 3 // 2, light=_direction(draw)), draw


def _direction(draw: np.random.RandomState) -> Triple:
    x, y, z = draw.uniform(-0.6, 0.6), 1.0, draw.uniform(-1.0, -0.2)
    length = float(np.sqrt(x * x + y * y + z * z))
    return x / length, y / length, z / length


def furnish(draw: np.random.RandomState) -> tuple[Scene, Camera]:
    """Return a room with furniture that does not overlap, and a camera that stands free in it."""
    width, height, length = draw.uniform(3.4, 6), draw.uniform(2.4, 3), draw.uniform(4, 7)
    around = tuple(_look(draw, name) for name in ("floor", "ceiling", "wall"))
    scene = Scene(shell=((0.0, 0.0, 0.0), (width, height, length), (around[0], around[1], around[2])))
    eye = (draw.uniform(0.35, 0.65) * width, draw.uniform(1.2, 1.7), draw.uniform(0.3, 0.8))
    taken = [(eye[0] - 0.6, 0.0, eye[0] + 0.6, eye[2] + 0.6)]
    pieces = [PIECES[i] for i in draw.permutation(len(PIECES))]
    for make in pieces[: draw.randint(4, len(PIECES) + 1)]:
        _place(scene, make(draw), taken, (width, length), draw)
    for name in ("picture", "window", "tv"):
        if draw.random_sample() < 0.7:
            _hang(scene, name, (width, height, length), draw)
    for _ in range(draw.randint(0, 3)):
        radius = draw.uniform(0.1, 0.2)
        x, z = draw.uniform(0.2, width - 0.2), draw.uniform(1.5, length - 0.2)
        scene.spheres.append(((x, radius, z), radius, _look(draw, "objects")))
    return scene, Camera(eye, draw.uniform(-0.2, 0.2), draw.uniform(0.0, 0.15))


def _look(draw: np.random.RandomState, name: str) -> Look:
    """Return a look of a class; the colours of classes overlap, so colour alone does not tell them apart."""
    textures: tuple[Texture, ...] = ("plain", "checks", "stripes", "bricks")
    bright = {"ceiling": 0.75, "wall": 0.55, "window": 0.8, "tv": 0.02}.get(name, 0.2)
    low, high = bright, min(bright + (0.1 if name == "tv" else 0.45), 1.0)
    red, green, blue = draw.uniform(low, high, 3)
    texture = "plain" if name in ("ceiling", "tv", "window") else textures[draw.randint(4)]
    return Look(CLASSES.index(name), (red, green, blue), texture, draw.uniform(0.06, 0.4))


def _place(
    scene: Scene,
    solids: list[Solid],
    taken: list[tuple[float, float, float, float]],
    room: tuple[float, float],
    draw: np.random.RandomState,
) -> None:
    """Put a piece of furniture, turned by quarters, where the floor is free; give up after 20 tries."""
    looks: dict[str, Look] = {}
    for _ in range(20):
        turned = [_quarter(solid, draw_turns) for draw_turns in [draw.randint(4)] for solid in solids]
        corner = [min(low[i] for low, _, _ in turned) for i in (0, 2)]
        spread = [max(high[i] for _, high, _ in turned) - corner[k] for k, i in enumerate((0, 2))]
        if spread[0] > room[0] or spread[1] > room[1]:
            continue
        x, z = (draw.uniform(0, room[k] - spread[k]) for k in range(2))
        if draw.random_sample() < 0.6:  # against a wall, as furniture mostly stands
            x = 0.0 if x < room[0] / 2 - spread[0] / 2 else room[0] - spread[0]
        area = (x, z, x + spread[0], z + spread[1])
        if any(area[0] < t[2] and t[0] < area[2] and area[1] < t[3] and t[1] < area[3] for t in taken):
            continue
        taken.append(area)
        for low, high, name in turned:
            move = (x - corner[0], 0.0, z - corner[1])
            a, b = (_sum(end, move) for end in (low, high))
            if name not in looks or name == "books":
                looks[name] = _look(draw, name)
            scene.boxes.append((a, b, looks[name]))
        return


def _sum(a: Triple, b: Triple) -> Triple:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def _quarter(solid: Solid, turns: int) -> Solid:
    """Return a box turned by quarters about the vertical through the origin."""
    (x0, y0, z0), (x1, y1, z1), name = solid
    for _ in range(turns):
        x0, z0, x1, z1 = -z1, x0, -z0, x1
    return (x0, y0, z0), (x1, y1, z1), name


def _hang(scene: Scene, name: str, room: Triple, draw: np.random.RandomState) -> None:
    """Put something flat on the far wall or a side wall."""
    wide, high = {"picture": (0.8, 0.6), "window": (1.6, 1.3), "tv": (1.3, 0.75)}[name]
    wide, high = wide * draw.uniform(0.7, 1.1), high * draw.uniform(0.7, 1.1)
    bottom = draw.uniform(0.9, max(room[1] - high - 0.1, 0.95))
    wall = draw.randint(3)
    along = draw.uniform(0.2, (room[0] if wall == 2 else room[2]) - wide - 0.2)
    thick = 0.03
    if wall == 2:
        low: Triple = (along, bottom, room[2] - thick)
        top: Triple = (along + wide, bottom + high, room[2])
    else:
        x = 0.0 if wall == 0 else room[0] - thick
        low, top = (x, bottom, along), (x + thick, bottom + high, along + wide)
    scene.boxes.append((low, top, _look(draw, name)))


def _bed(draw: np.random.RandomState) -> list[Solid]:
    w, h = draw.uniform(1.0, 1.7), draw.uniform(0.4, 0.55)
    pillow = ((0.1, h, 1.5), (w - 0.1, h + 0.12, 1.9), "bed")
    return [((0, 0, 0), (w, h, 2.0), "bed"), pillow, ((0, 0, 1.95), (w, draw.uniform(0.8, 1.1), 2.03), "bed")]


def _sofa(draw: np.random.RandomState) -> list[Solid]:
    w, h = draw.uniform(1.4, 2.2), draw.uniform(0.38, 0.46)
    arms: list[Solid] = [((x, 0, 0), (x + 0.18, h + 0.2, 0.85), "sofa") for x in (0.0, w - 0.18)]
    return [((0, 0, 0), (w, h, 0.85), "sofa"), ((0, 0, 0.65), (w, h + 0.42, 0.85), "sofa"), *arms]


def _on_legs(w: float, d: float, top: float, name: str) -> list[Solid]:
    legs: list[Solid] = [
        ((x, 0, z), (x + 0.06, top - 0.05, z + 0.06), name) for x in (0.0, w - 0.06) for z in (0.0, d - 0.06)
    ]
    return [((0, top - 0.05, 0), (w, top, d), name), *legs]


def _chair(draw: np.random.RandomState) -> list[Solid]:
    w, top = draw.uniform(0.4, 0.55), draw.uniform(0.42, 0.5)
    return [*_on_legs(w, w, top, "chair"), ((0, top, w - 0.06), (w, top + 0.5, w), "chair")]


def _table(draw: np.random.RandomState) -> list[Solid]:
    w, d, top = draw.uniform(0.9, 1.7), draw.uniform(0.6, 0.95), draw.uniform(0.68, 0.78)
    found = _on_legs(w, d, top, "table")
    for _ in range(draw.randint(0, 4)):
        x, z = draw.uniform(0.05, w - 0.35), draw.uniform(0.05, d - 0.3)
        kind, high = ("books", draw.uniform(0.04, 0.2)) if draw.random_sample() < 0.6 else ("objects", 0.25)
        found.append(((x, top, z), (x + draw.uniform(0.12, 0.3), top + high, z + 0.22), kind))
    return found


def _wardrobe(draw: np.random.RandomState) -> list[Solid]:
    return [
        ((0, 0, 0), (draw.uniform(0.8, 1.6), draw.uniform(0.7, 2.1), draw.uniform(0.4, 0.6)), "furniture")
    ]


def _shelf(draw: np.random.RandomState) -> list[Solid]:
    """Boards with books between them, open to the front."""
    w, boards = draw.uniform(0.8, 1.4), draw.randint(2, 5)
    found: list[Solid] = [((0, 0, 0.27), (w, 0.4 * boards + 0.04, 0.3), "furniture")]
    for board in range(boards + 1):
        y = 0.4 * board
        found.append(((0, y, 0), (w, y + 0.04, 0.27), "furniture"))
        x = 0.0
        while board < boards and x < w - 0.25:
            thick = draw.uniform(0.1, 0.25)
            found.append(
                ((x, y + 0.04, 0.05), (x + thick - 0.01, y + draw.uniform(0.22, 0.36), 0.27), "books")
            )
            x += thick
    return found


PIECES: tuple[Callable[[np.random.RandomState], list[Solid]], ...] = (
    _bed, _sofa, _chair, _chair, _table, _table, _wardrobe, _shelf,
)  # fmt: skip
