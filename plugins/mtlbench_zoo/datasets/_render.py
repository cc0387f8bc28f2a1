"""A ray caster for boxes, spheres and the ground: images with exact depth, normals and labels.

The world has x to the right, y up and z ahead; the camera's own frame has x to the right, y down and z ahead,
as depth cameras have. Only additions, products, quotients, square roots and comparisons of single numbers are
used, which every machine rounds the same, so that a scene is the same everywhere, byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Triple = tuple[float, float, float]
Texture = Literal["plain", "checks", "stripes", "bricks"]

FOCAL = 0.7
"""Focal length in widths of the image: 71 degrees are seen from left to right."""
NEAR = 1e-6


@dataclass(frozen=True)
class Look:
    """What a surface is and how it looks: class, colour in 0..1, texture and the texture's size in metres."""

    label: int
    colour: Triple
    texture: Texture = "plain"
    scale: float = 0.3


@dataclass(frozen=True)
class Camera:
    """Where the camera stands, and the tangents of half the angles that it is turned right and down by."""

    place: Triple
    yaw: float = 0.0
    pitch: float = 0.0


@dataclass
class Scene:
    """What there is to see: boxes (low, high corner), spheres (centre, radius), and what is around them.

    shell: a box that is seen from inside, with looks of its floor, ceiling and walls; None for the open air,
    where there is the ground y = 0 with `ground` and the sky.
    """

    boxes: list[tuple[Triple, Triple, Look]] = field(default_factory=list)
    spheres: list[tuple[Triple, float, Look]] = field(default_factory=list)
    shell: tuple[Triple, Triple, tuple[Look, Look, Look]] | None = None
    ground: Look | None = None


@dataclass(frozen=True)
class View:
    """What the camera sees, by pixel ``[H, W]``.

    depth: along the camera's z in metres, inf for the sky. normals ``[H, W, 3]`` in the camera's frame,
    towards the camera, NaN for the sky. look: which of `looks` it is, -1 for the sky. point ``[H, W, 3]`` and
    side: where it is in the world, and the axis (0..2) that a flat surface is square to, 3 for a sphere.
    shade: how far the surface faces up and towards the light, in 0..1.
    """

    depth: Array
    normals: Array
    look: NDArray[np.int64]
    looks: Sequence[Look]
    point: Array
    side: NDArray[np.int64]
    shade: Array

    def labels(self, sky: int = -1) -> NDArray[np.int64]:
        """Return the classes, int64 ``[H, W]``."""
        table = np.array([*(look.label for look in self.looks), sky])
        return np.asarray(table[self.look])


def camera_rays(height: int, width: int) -> Array:
    """Return the directions of all pixels in the camera's frame, ``[H, W, 3]`` with z = 1."""
    focal = FOCAL * width
    x = (np.arange(width) + 0.5 - width / 2) / focal
    y = (np.arange(height) + 0.5 - height / 2) / focal
    rays = np.ones((height, width, 3))
    rays[..., 0], rays[..., 1] = x, y[:, None]
    return rays


def rotation(camera: Camera) -> list[Triple]:
    """Return the camera's axes (right, down, ahead) in the world; exact from tangents of half angles."""
    cy, sy = _turn(camera.yaw)
    cp, sp = _turn(camera.pitch)
    return [(cy, 0.0, -sy), (-sp * sy, -cp, -sp * cy), (cp * sy, -sp, cp * cy)]


def _turn(tangent: float) -> tuple[float, float]:
    square = tangent * tangent
    return (1 - square) / (1 + square), 2 * tangent / (1 + square)


def cast(scene: Scene, camera: Camera, height: int, width: int, light: Triple) -> View:
    """Return what ``camera`` sees. light: the direction that light comes from, of length 1."""
    axes = rotation(camera)
    seen = camera_rays(height, width).reshape(-1, 3)
    ahead = [seen[:, 0] * axes[0][i] + seen[:, 1] * axes[1][i] + seen[:, 2] * axes[2][i] for i in range(3)]
    # A ray along a wall never meets it; the smallest number keeps its quotient finite.
    ahead = [np.where(np.abs(d) < 1e-12, 1e-12, d) for d in ahead]
    looks: list[Look] = []
    hits = [part(scene, camera.place, ahead, looks) for part in (_boxes, _spheres, _surroundings)]
    distance = np.stack([hit[0] for hit in hits])
    nearest = distance.argmin(0)
    pick = np.arange(len(seen))
    depth = distance[nearest, pick]
    sky = np.isinf(depth)
    normal = np.stack([hit[1] for hit in hits])[nearest, pick]
    look = np.where(sky, -1, np.stack([hit[2] for hit in hits])[nearest, pick])
    side = np.stack([hit[3] for hit in hits])[nearest, pick]
    reach = np.where(sky, 0, depth)
    point = np.stack([camera.place[i] + reach * ahead[i] for i in range(3)], axis=1)
    turned = np.stack([normal[:, 0] * a[0] + normal[:, 1] * a[1] + normal[:, 2] * a[2] for a in axes], axis=1)
    facing = normal[:, 0] * light[0] + normal[:, 1] * light[1] + normal[:, 2] * light[2]
    turned[sky] = np.nan

    def image(values: NDArray[Any]) -> NDArray[Any]:
        return values.reshape(height, width, *values.shape[1:])

    return View(
        image(depth),
        image(turned),
        image(look),
        looks,
        image(point),
        image(side),
        image(np.maximum(facing, 0)),
    )


_Hit = tuple[Array, Array, NDArray[np.int64], NDArray[np.int64]]
"""By ray: distance (inf: none), normal in the world, look and side."""


def _nothing(rays: int) -> _Hit:
    return np.full(rays, np.inf), np.zeros((rays, 3)), np.zeros(rays, np.int64), np.zeros(rays, np.int64)


def _slabs(low: Array, high: Array, place: Triple, ahead: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    """Return where rays enter and leave the slabs of boxes, by axis ``[rays, boxes]``."""
    enter, leave = [], []
    for axis in range(3):
        inverse = (1 / ahead[axis])[:, None]
        first, second = (low[:, axis] - place[axis]) * inverse, (high[:, axis] - place[axis]) * inverse
        enter.append(np.minimum(first, second))
        leave.append(np.maximum(first, second))
    return enter, leave


def _flat(side: NDArray[np.int64], ahead: Sequence[Array]) -> Array:
    """Return normals of flat surfaces: along the axis ``side``, against the ray."""
    normal = np.zeros((len(side), 3))
    for axis in range(3):
        normal[:, axis] = np.where(side == axis, -np.sign(ahead[axis]), 0)
    return normal


def _boxes(scene: Scene, place: Triple, ahead: Sequence[Array], looks: list[Look]) -> _Hit:
    if not scene.boxes:
        return _nothing(len(ahead[0]))
    low, high = (np.array([box[i] for box in scene.boxes]) for i in (0, 1))
    enter, leave = _slabs(low, high, place, ahead)
    near = np.maximum(np.maximum(enter[0], enter[1]), enter[2])
    far = np.minimum(np.minimum(leave[0], leave[1]), leave[2])
    near = np.where((near < far) & (near > NEAR), near, np.inf)
    which, pick = near.argmin(1), np.arange(len(near))
    side = np.stack([e[pick, which] for e in enter]).argmax(0)
    first = len(looks)
    looks += [box[2] for box in scene.boxes]
    return near[pick, which], _flat(side, ahead), first + which, side


def _spheres(scene: Scene, place: Triple, ahead: Sequence[Array], looks: list[Look]) -> _Hit:
    if not scene.spheres:
        return _nothing(len(ahead[0]))
    centre, radius = (np.array([sphere[i] for sphere in scene.spheres]) for i in (0, 1))
    gap = [place[i] - centre[:, i] for i in range(3)]
    a = (ahead[0] * ahead[0] + ahead[1] * ahead[1] + ahead[2] * ahead[2])[:, None]
    b = ahead[0][:, None] * gap[0] + ahead[1][:, None] * gap[1] + ahead[2][:, None] * gap[2]
    c = gap[0] * gap[0] + gap[1] * gap[1] + gap[2] * gap[2] - radius * radius
    root = b * b - a * c
    near = (-b - np.sqrt(np.maximum(root, 0))) / a
    near = np.where((root > 0) & (near > NEAR), near, np.inf)
    which, pick = near.argmin(1), np.arange(len(near))
    distance = near[pick, which]
    reach = np.where(np.isinf(distance), 0, distance)
    normal = np.stack(
        [(place[i] + reach * ahead[i] - centre[which, i]) / radius[which] for i in range(3)], axis=1
    )
    first = len(looks)
    looks += [sphere[2] for sphere in scene.spheres]
    return distance, normal, first + which, np.full(len(which), 3)


def _surroundings(scene: Scene, place: Triple, ahead: Sequence[Array], looks: list[Look]) -> _Hit:
    first = len(looks)
    if scene.shell is not None:
        low, high, around = scene.shell
        _, leave = _slabs(np.array([low]), np.array([high]), place, ahead)
        ends = np.stack([axis[:, 0] for axis in leave])
        side = ends.argmin(0)
        looks += around
        look = np.where(side != 1, 2, np.where(ahead[1] < 0, 0, 1))
        return ends.min(0), _flat(side, ahead), first + look, side
    distance, normal, look, side = _nothing(len(ahead[0]))
    if scene.ground is not None:
        distance = np.where(ahead[1] < 0, -place[1] / ahead[1], np.inf)
        normal[:, 1] = 1
        looks.append(scene.ground)
    return distance, normal, look + first, side + 1


def paint(view: View, draw: np.random.RandomState, sky: Triple = (0.6, 0.75, 0.95)) -> NDArray[np.uint8]:
    """Return the image uint8 ``[H, W, 3]``: colour times texture times light, with a little noise."""
    colours = np.array([*(look.colour for look in view.looks), sky])[view.look]
    scales = np.array([*(look.scale for look in view.looks), 1.0])[view.look]
    kinds = np.array([*(_TEXTURES.index(look.texture) for look in view.looks), 0])[view.look]
    u = np.where(view.side == 0, view.point[..., 2], view.point[..., 0]) / scales
    v = np.where(view.side == 1, view.point[..., 2], view.point[..., 1]) / scales
    row, odd = np.floor(v), np.floor(v) % 2
    dark = np.select(
        [kinds == 1, kinds == 2, kinds == 3],
        [
            (np.floor(u) + row) % 2 * 0.3,
            np.floor(u) % 2 * 0.25,
            ((v - row < 0.15) | ((u + odd) / 2 % 1 < 0.08)) * 0.35,
        ],
        0.0,
    )
    lit = np.where(view.look < 0, 1.0, (0.45 + 0.55 * view.shade) * (1 - dark))
    noise = draw.random_sample(view.look.shape) * 0.06 - 0.03
    return np.floor(np.clip(colours * lit[..., None] + noise[..., None], 0, 1) * 255 + 0.5).astype(np.uint8)


_TEXTURES: tuple[Texture, ...] = ("plain", "checks", "stripes", "bricks")
