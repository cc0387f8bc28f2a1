"""The built-in sample of `pets`: cats and dogs that are drawn, not photographed.

Everything is signed distances on a 64 x 64 grid, painted back to front with anti-aliased edges. Every number
comes from the frozen stream of `numpy.random.RandomState` through ``+ - * /``, square roots and comparisons,
which IEEE 754 defines to the last bit; sines, powers, sums and matrix products, whose last bit depends on
the processor and the build, are avoided. So the images are the same, byte for byte, everywhere.

What tells the classes apart are ears (pointed or hanging), muzzle (short or long) and tail (thin and up, or
thick); colours, coats, poses, backgrounds and light come from the same distributions for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Colour = tuple[float, float, float]
Point = tuple[float, float]

SIZE = 64
COUNTS = (600, 200, 200)
"""Samples in train, val and test."""
VERSION = 1
"""Raise it when the drawings change: a sample of another version is drawn again."""

FURS: tuple[Colour, ...] = (
    (0.14, 0.13, 0.14),
    (0.30, 0.22, 0.17),
    (0.47, 0.33, 0.21),
    (0.76, 0.49, 0.24),
    (0.86, 0.72, 0.52),
    (0.48, 0.48, 0.51),
    (0.66, 0.64, 0.62),
    (0.91, 0.89, 0.85),
)
"""Fur colours, shared by both classes (and by the blobs of the background)."""
EYES: tuple[Colour, ...] = ((0.62, 0.70, 0.22), (0.78, 0.56, 0.16), (0.30, 0.18, 0.09), (0.42, 0.60, 0.70))
PINK: Colour = (0.80, 0.52, 0.50)
BLACK: Colour = (0.07, 0.06, 0.07)


class Drawing(NamedTuple):
    """One sample: image uint8 ``[S, S, 3]``, mask uint8 ``[S, S]`` (1 animal), box (0..1), label (1 dog)."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    box: tuple[float, float, float, float]
    label: int


class Dice:
    """Random numbers from the one generator whose stream NumPy promises never to change."""

    def __init__(self, seed: int) -> None:
        self._state = np.random.RandomState(seed)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(self._state.random_sample())

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability

    def below(self, n: int) -> int:
        return int(self.uniform() * n)

    def sign(self) -> float:
        return 1.0 if self.chance(0.5) else -1.0

    def colour(self, low: float = 0.1, high: float = 0.9) -> Colour:
        """Return a muted random colour."""
        r, g, b = self.uniform(low, high), self.uniform(low, high), self.uniform(low, high)
        grey = (r + g + b) / 3
        return mix((r, g, b), (grey, grey, grey), 0.4)

    def grid(self, *shape: int) -> Array:
        return np.asarray(self._state.random_sample(shape))

    def turn(self, most: float) -> Point:
        """Return (cos, sin) of a random angle, without trigonometry: half-angle tangents up to ``most``."""
        t = self.uniform(-most, most)
        return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)


# --- shapes: each gives the signed distance (negative inside) at points x, y -------------------------------


@dataclass(frozen=True)
class Ellipse:
    """An ellipse; the distance is exact on its edge and a good estimate near it."""

    centre: Point
    radii: Point
    axis: Point = (1.0, 0.0)

    def distance(self, x: Array, y: Array) -> Array:
        c, s = self.axis
        dx, dy = x - self.centre[0], y - self.centre[1]
        u, v = (c * dx + s * dy) / self.radii[0], (c * dy - s * dx) / self.radii[1]
        scaled: Array = np.sqrt(u * u + v * v)
        du, dv = u / self.radii[0], v / self.radii[1]
        slope: Array = np.maximum(np.sqrt(du * du + dv * dv), 1e-6)
        return scaled * (scaled - 1) / slope

    def bounds(self) -> tuple[float, float, float, float]:
        r = max(self.radii)
        return self.centre[0] - r, self.centre[1] - r, self.centre[0] + r, self.centre[1] + r


@dataclass(frozen=True)
class Limb:
    """A chain of capsules through ``points``, whose radius goes from ``radii[0]`` to ``radii[1]``."""

    points: tuple[Point, ...]
    radii: Point

    def distance(self, x: Array, y: Array) -> Array:
        n = len(self.points) - 1
        nearest = np.full(x.shape, np.inf)
        for i, (a, b) in enumerate(zip(self.points, self.points[1:], strict=False)):
            dx, dy = b[0] - a[0], b[1] - a[1]
            along = ((x - a[0]) * dx + (y - a[1]) * dy) / (dx * dx + dy * dy + 1e-12)
            along = np.minimum(np.maximum(along, 0.0), 1.0)
            px, py = x - a[0] - along * dx, y - a[1] - along * dy
            radius = self.radii[0] + (self.radii[1] - self.radii[0]) * (i + along) / n
            nearest = np.minimum(nearest, np.sqrt(px * px + py * py) - radius)
        return nearest

    def bounds(self) -> tuple[float, float, float, float]:
        r = max(self.radii)
        xs, ys = [p[0] for p in self.points], [p[1] for p in self.points]
        return min(xs) - r, min(ys) - r, max(xs) + r, max(ys) + r


@dataclass(frozen=True)
class Polygon:
    """A convex polygon with corners in either order, its edges moved outwards by ``round``."""

    points: tuple[Point, ...]
    round: float = 0.0

    def distance(self, x: Array, y: Array) -> Array:
        corners = self.points
        area = 0.0
        for a, b in zip(corners, corners[1:] + corners[:1], strict=True):
            area += a[0] * b[1] - a[1] * b[0]
        side = 1.0 if area > 0 else -1.0
        farthest = np.full(x.shape, -np.inf)
        for a, b in zip(corners, corners[1:] + corners[:1], strict=True):
            dx, dy = b[0] - a[0], b[1] - a[1]
            length = float(np.sqrt(dx * dx + dy * dy)) + 1e-12
            edge = side * ((x - a[0]) * dy - (y - a[1]) * dx) / length
            farthest = np.maximum(farthest, edge)
        return farthest - self.round

    def bounds(self) -> tuple[float, float, float, float]:
        xs, ys = [p[0] for p in self.points], [p[1] for p in self.points]
        # Half-planes overshoot at sharp corners, hence the wider margin.
        m = 2 * self.round
        return min(xs) - m, min(ys) - m, max(xs) + m, max(ys) + m


Shape = Ellipse | Limb | Polygon


def bend(a: Point, b: Point, c: Point, pieces: int = 5) -> tuple[Point, ...]:
    """Return points on the quadratic Bezier curve from ``a`` by way of ``b`` to ``c``."""
    out = []
    for i in range(pieces + 1):
        t = i / pieces
        u, v, w = (1 - t) * (1 - t), 2 * t * (1 - t), t * t
        out.append((u * a[0] + v * b[0] + w * c[0], u * a[1] + v * b[1] + w * c[1]))
    return tuple(out)


def mix(a: Colour, b: Colour, t: float) -> Colour:
    """Return the colour that lies ``t`` of the way from ``a`` to ``b``."""
    return (a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1]), a[2] + t * (b[2] - a[2]))


def plane(colour: Colour) -> Array:
    """Return a colour as ``[3, 1, 1]``, to be spread over pixels."""
    return np.array(colour).reshape(3, 1, 1)


# --- noise: smooth fields in -1..1 --------------------------------------------------------------------------


@cache
def _between(pieces: int) -> tuple[NDArray[np.intp], Array]:
    """Return for every pixel the piece of 0..SIZE that it lies in, and where in that piece (0..1)."""
    at = (np.arange(SIZE) + 0.5) / SIZE * pieces
    piece = at.astype(np.intp)
    return piece, at - piece


def smooth(dice: Dice, across: int, down: int) -> Array:
    """Return noise ``[SIZE, SIZE]`` that is linear between ``down`` x ``across`` random knots."""
    knots = 2 * dice.grid(down + 1, across + 1) - 1
    (i, fy), (j, fx) = _between(down), _between(across)
    columns = knots[:, j] * (1 - fx) + knots[:, j + 1] * fx
    return columns[i] * (1 - fy[:, None]) + columns[i + 1] * fy[:, None]


def texture(dice: Dice) -> Array:
    """Return the fine texture of fur or cloth: streaks in one of two directions plus single-pixel grain."""
    streaks = smooth(dice, 40, 13) if dice.chance(0.5) else smooth(dice, 13, 40)
    return 0.55 * streaks + 0.3 * smooth(dice, 9, 9) + 0.4 * (2 * dice.grid(SIZE, SIZE) - 1)


def coat(dice: Dice) -> Array:
    """Return where the second fur colour shows, 0..1: stripes, patches, a soft gradient or nowhere."""
    kind = dice.uniform()
    field = smooth(dice, 4, 4)
    if kind < 0.3:
        axis = dice.turn(1.0)
        x = (np.arange(SIZE) + 0.5) / SIZE
        phase = dice.uniform(5, 10) * (axis[0] * x[None, :] + axis[1] * x[:, None]) + 0.9 * field
        wave = np.abs(phase - np.floor(phase) - 0.5) * 4 - 1
        return np.minimum(np.maximum(wave * 1.5, 0.0), 1.0) * 0.75
    if kind < 0.6:
        return np.minimum(np.maximum((field - dice.uniform(0.0, 0.3)) * 5, 0.0), 1.0)
    if kind < 0.8:
        return 0.5 + 0.5 * smooth(dice, 2, 2)
    return np.zeros((SIZE, SIZE))


class Canvas:
    """An image under way: colours ``[3, S, S]``, and how much of each pixel is animal and is head."""

    def __init__(self, dice: Dice) -> None:
        self.rgb = np.zeros((3, SIZE, SIZE))
        self.animal = np.zeros((SIZE, SIZE))
        self.head = np.zeros((SIZE, SIZE))
        at = np.arange(SIZE) + 0.5
        self.x, self.y = (
            np.broadcast_to(at[None, :], (SIZE, SIZE)),
            np.broadcast_to(at[:, None], (SIZE, SIZE)),
        )
        self.light = (dice.uniform(-1, 1), dice.uniform(-1, 0.2))

    def paint(
        self,
        shape: Shape,
        colour: Colour | Array,
        *,
        grain: Array | None = None,
        shade: float = 0.0,
        soft: float = 1.0,
        part: str = "",
    ) -> None:
        """Paint ``shape`` over what is there.

        colour: one, or one a pixel ``[3, S, S]``. grain: texture that is added. shade: how much the side away
        from the light is darker, and the rim with it. soft: width of the edge in pixels. part: "body" or
        "head" where the shape belongs to the animal; any other shape hides what of the animal it covers.
        """
        left, top, right, bottom = shape.bounds()
        if not (right > -1 and bottom > -1 and left < SIZE + 1 and top < SIZE + 1):
            return
        window = (
            slice(max(int(top - 2), 0), max(int(bottom + 3), 0)),
            slice(max(int(left - 2), 0), max(int(right + 3), 0)),
        )
        x, y = self.x[window], self.y[window]
        distance = shape.distance(x, y)
        cover = np.minimum(np.maximum(0.5 - distance / soft, 0.0), 1.0)
        tint = np.empty((3, *x.shape))
        tint[:] = plane(colour) if isinstance(colour, tuple) else colour[:, *window]
        if shade:
            half = max(right - left, bottom - top) / 2
            slope = (x - (left + right) / 2) * self.light[0] + (y - (top + bottom) / 2) * self.light[1]
            rim = np.minimum(np.maximum(1 + distance / (0.45 * half), 0.0), 1.0)
            tint *= 1 + shade * (slope / half - 0.5 * rim)
        if grain is not None:
            tint += grain[window]
        rgb = self.rgb[:, *window]
        rgb += cover * (tint - rgb)
        animal, head = self.animal[window], self.head[window]
        if part:
            animal += cover * (1 - animal)
        else:
            animal *= 1 - cover
        if part == "head":
            head += cover * (1 - head)


# --- backgrounds -------------------------------------------------------------------------------------------


def blend(dice: Dice, first: Colour, second: Colour) -> Array:
    """Return a gradient between two colours in a random direction, ``[3, S, S]``."""
    axis = dice.turn(3.0)
    at = (np.arange(SIZE) + 0.5) / SIZE - 0.5
    along: Array = np.minimum(np.maximum(0.5 + axis[0] * at[None, :] + axis[1] * at[:, None], 0.0), 1.0)
    return plane(first) * (1 - along) + plane(second) * along


def background(canvas: Canvas, dice: Dice) -> None:
    """Fill the canvas: meadow, room, blanket or haze, then clutter, some of it furry and round."""
    kind = dice.below(4)
    if kind == 0:
        green = (dice.uniform(0.2, 0.45), dice.uniform(0.4, 0.65), dice.uniform(0.1, 0.3))
        canvas.rgb[:] = blend(dice, green, mix(green, dice.colour(0.3, 0.9), 0.5))
        canvas.rgb += 0.16 * smooth(dice, 32, 12) + 0.1 * smooth(dice, 6, 6)
    elif kind == 1:
        wall, floor = dice.colour(0.35, 0.9), mix(dice.colour(0.2, 0.7), (0.5, 0.35, 0.2), 0.5)
        canvas.rgb[:] = blend(dice, wall, mix(wall, dice.colour(), 0.25))
        edge = dice.uniform(24, 50)
        canvas.paint(Polygon(((-9, edge), (73, edge + dice.uniform(-6, 6)), (73, 80), (-9, 80))), floor)
        canvas.rgb += 0.08 * smooth(dice, 5, 24)
    elif kind == 2:
        cloth = dice.colour(0.2, 0.85)
        canvas.rgb[:] = blend(dice, cloth, mix(cloth, dice.colour(), 0.4))
        canvas.rgb += 0.2 * smooth(dice, 5, 5) + 0.1 * texture(dice)
    else:
        canvas.rgb[:] = blend(dice, dice.colour(0.3, 0.95), dice.colour(0.2, 0.8))
        canvas.rgb += 0.12 * np.stack([smooth(dice, 8, 8), smooth(dice, 8, 8), smooth(dice, 8, 8)], axis=0)
    for _ in range(2 + dice.below(6)):
        clutter(canvas, dice)


def clutter(canvas: Canvas, dice: Dice, most: float = 16.0) -> None:
    """Paint one thing that is no animal: a block, a stick, or a furry cushion (sometimes with corners)."""
    x, y, size = dice.uniform(-2, SIZE + 2), dice.uniform(-2, SIZE + 2), dice.uniform(3, most)
    kind = dice.uniform()
    if kind < 0.25:
        c, s = dice.turn(1.0)
        w, h = size * dice.uniform(0.4, 1.2), size * dice.uniform(0.3, 0.9)
        corners = tuple(
            (x + c * u * w - s * v * h, y + s * u * w + c * v * h)
            for u, v in ((-1, -1), (1, -1), (1, 1), (-1, 1))
        )
        canvas.paint(Polygon(corners, 0.8), dice.colour(), shade=dice.uniform(0, 0.4))
    elif kind < 0.5:
        tip = (x + dice.uniform(-24, 24), y + dice.uniform(-24, 24))
        middle = (x + dice.uniform(-15, 15), y + dice.uniform(-15, 15))
        thick = dice.uniform(0.5, 2.6)
        colour = dice.colour() if dice.chance(0.5) else FURS[dice.below(len(FURS))]
        canvas.paint(Limb(bend((x, y), middle, tip), (thick, thick * 0.6)), colour, shade=0.2)
    else:
        fur = mix(FURS[dice.below(len(FURS))], dice.colour(), 0.15)
        grain = dice.uniform(0.03, 0.12) * texture(dice)
        radii = (size * dice.uniform(0.6, 1.0), size * dice.uniform(0.45, 0.9))
        if dice.chance(0.35):
            for side in (-1, 1):
                base = x + side * 0.55 * radii[0]
                ear = ((base - 0.3 * size, y), (base + 0.3 * size, y), (base + side * 2, y - 1.3 * radii[1]))
                canvas.paint(Polygon(ear), fur, grain=grain)
        canvas.paint(Ellipse((x, y), radii, dice.turn(0.6)), fur, grain=grain, shade=dice.uniform(0.1, 0.45))
        if dice.chance(0.35):
            for side in (-1, 1):
                canvas.paint(Ellipse((x + side * 0.35 * size, y - 0.1 * size), (1.2, 1.2)), BLACK)


# --- the animals -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """Where the animal stands: its own coordinates have the head at 0, 0 with radius 1 and y downwards."""

    centre: Point
    scale: float
    axis: Point
    mirror: float

    def at(self, x: float, y: float) -> Point:
        """Return the pixel position of a point of the animal."""
        u, v = self.mirror * x * self.scale, y * self.scale
        c, s = self.axis
        return self.centre[0] + c * u - s * v, self.centre[1] + s * u + c * v

    def ellipse(self, x: float, y: float, rx: float, ry: float) -> Ellipse:
        return Ellipse(self.at(x, y), (rx * self.scale, ry * self.scale), self.axis)

    def limb(self, points: Sequence[Point], first: float, last: float) -> Limb:
        return Limb(tuple(self.at(*p) for p in points), (first * self.scale, last * self.scale))

    def polygon(self, points: Sequence[Point], round: float = 0.0) -> Polygon:
        return Polygon(tuple(self.at(*p) for p in points), round * self.scale)


# Per pose: how far the animal reaches from its head's centre (left, up, right, down), in head radii.
REACH: dict[str, tuple[float, float, float, float]] = {
    "sit": (1.5, 1.3, 2.2, 4.0),
    "stand": (1.3, 1.3, 5.0, 3.9),
    "lie": (1.5, 1.3, 4.2, 2.1),
    "near": (1.5, 1.3, 1.5, 1.9),
}


@dataclass
class Animal:
    """One cat or dog: what varies from one to the next, and how it is painted."""

    canvas: Canvas
    dice: Dice
    dog: bool

    def __post_init__(self) -> None:
        dice = self.dice
        self.pose = ("sit", "sit", "stand", "stand", "lie", "near")[dice.below(6)]
        left, up, right, down = REACH[self.pose]
        fill = dice.uniform(0.65, 1.0) if self.pose != "near" else dice.uniform(0.5, 0.85)
        scale = fill * SIZE / max(left + right, up + down)
        mirror = dice.sign()
        if mirror < 0:
            left, right = right, left
        # The whole animal fits into the picture, but for a little that may be cut off.
        spare_x, spare_y = SIZE - scale * (left + right), SIZE - scale * (up + down)
        x = scale * left + dice.uniform(0, 1) * spare_x + dice.uniform(-3, 3)
        y = scale * up + dice.uniform(0.2, 1) * spare_y + dice.uniform(-3, 3)
        self.body_frame = Frame((x, y), scale, dice.turn(0.06), mirror)
        self.head_frame = Frame((x, y), scale * dice.uniform(0.92, 1.08), dice.turn(0.16), mirror)
        self.turn = dice.uniform(-0.9, 0.3)
        """How far the face is turned away from the body, -1..1."""

        first, second = FURS[dice.below(len(FURS))], FURS[dice.below(len(FURS))]
        tint = dice.colour(0.3, 0.7)
        self.first, self.second = mix(first, tint, 0.12), mix(second, tint, 0.12)
        pattern = coat(dice)
        self.fur: Array = plane(self.first) * (1 - pattern) + plane(self.second) * pattern
        self.grain = dice.uniform(0.04, 0.11) * texture(dice)
        self.shade = dice.uniform(0.15, 0.45)
        self.pale = mix(self.first, (0.95, 0.92, 0.88), dice.uniform(0.0, 0.8))

    def coated(self, shape: Shape, part: str, colour: Colour | Array | None = None) -> None:
        fur = self.fur if colour is None else colour
        self.canvas.paint(shape, fur, grain=self.grain, shade=self.shade, soft=1.4, part=part)

    def paint(self) -> None:
        getattr(self, f"_{self.pose}")()
        self._head()

    def _leg(self, x: float, top: float, bottom: float, dark: float = 0.0) -> None:
        thick = 0.27 + (0.04 if self.dog else 0.0)
        frame, lean = self.body_frame, self.dice.uniform(-0.15, 0.15)
        colour = self.fur * (1 - dark)
        self.coated(frame.limb(((x, top), (x + lean, bottom)), thick + 0.06, thick - 0.04), "body", colour)
        self.coated(frame.ellipse(x + lean - 0.12, bottom + 0.1, 0.36, 0.2), "body", colour)

    def _tail(self, x: float, y: float, room: float) -> None:
        """Paint a tail that starts at ``x, y``: thin, long and up for a cat; thick and short for a dog."""
        dice, frame = self.dice, self.body_frame
        if self.dog:
            length, lift = dice.uniform(0.9, 1.5) * room, dice.uniform(-0.6, 0.7)
            points = bend((x, y), (x + 0.7 * length, y + 0.1), (x + length, y - lift * length))
            self.coated(frame.limb(points, dice.uniform(0.26, 0.36), dice.uniform(0.14, 0.3)), "body")
        else:
            height, hook = dice.uniform(1.5, 2.6) * room, dice.uniform(-0.5, 0.6)
            points = bend((x, y), (x + dice.uniform(0.7, 1.4) * room, y), (x + 0.7 + hook, y - height))
            self.coated(frame.limb(points, 0.17, dice.uniform(0.1, 0.15)), "body")

    def _sit(self) -> None:
        frame, dice = self.body_frame, self.dice
        lean = dice.uniform(0.0, 0.6)
        wide = dice.uniform(0.95, 1.2)
        self._tail(lean + 0.8, 3.4, 1.0)
        self.coated(frame.ellipse(lean, 2.25, wide, 1.65), "body")
        self.coated(frame.ellipse(lean + 0.55, 3.1, 0.8, 0.75), "body")
        self.coated(frame.ellipse(lean - 0.65, 3.2, 0.65, 0.65), "body")
        self.coated(frame.ellipse(lean * 0.5 - 0.1, 1.7, 0.6, 0.95), "body", self.pale)
        self._leg(lean - 0.45, 2.2, 3.65)
        self._leg(lean + 0.2, 2.2, 3.7)

    def _stand(self) -> None:
        frame, dice = self.body_frame, self.dice
        long, deep = dice.uniform(2.0, 2.6), dice.uniform(0.8, 0.98)
        end = 0.9 + long
        self._tail(end + 0.5, 0.95, 1.0)
        for x in (1.05, end - 0.25):
            self._leg(x + 0.35, 1.6, 3.3, dark=0.25)
        self.coated(frame.limb(((0.95, 1.15), (end, 1.2)), deep, deep * 0.95), "body")
        self.coated(frame.limb(((0.2, 0.5), (1.0, 1.1)), 0.6, 0.75), "body")
        for x in (0.85, end):
            self._leg(x, 1.5, 3.5)

    def _lie(self) -> None:
        frame, dice = self.body_frame, self.dice
        long = dice.uniform(1.5, 1.9)
        self._tail(0.6 + 2 * long - 0.3, 1.3, 0.7)
        self.coated(frame.ellipse(0.6 + long, 0.95, long, dice.uniform(0.8, 1.0)), "body")
        self.coated(frame.ellipse(0.3 + 1.6 * long, 1.25, 0.85, 0.65), "body")
        for x, y in ((0.5, 1.5), (0.2, 1.75)):
            self.coated(frame.limb(((x + 0.9, y - 0.1), (x - 0.7, y)), 0.28, 0.24), "body")

    def _near(self) -> None:
        frame = self.body_frame
        self.coated(frame.ellipse(0.15, 2.6, self.dice.uniform(1.25, 1.6), 2.1), "body")
        self.coated(frame.ellipse(0.0, 2.2, 0.65, 1.2), "body", self.pale)

    def _head(self) -> None:
        dice, frame, dog, turn = self.dice, self.head_frame, self.dog, self.turn
        wide, tall = dice.uniform(0.88, 1.0), dice.uniform(0.78, 0.92)
        inner = mix(mix(self.first, PINK, 0.6), BLACK, dice.uniform(0, 0.4))
        ear = self.fur * dice.uniform(0.6, 1.05)
        if not dog:
            self._pointed_ears(ear, inner, dice.uniform(0.42, 0.85))
        elif dice.chance(0.15):
            # Some dogs prick their ears; the muzzle and the tail still tell.
            self._pointed_ears(ear, inner, dice.uniform(0.3, 0.55))
        self.coated(frame.ellipse(0, 0, wide, tall), "head")

        # The muzzle: a cat's is short and stays in the face, a dog's is long and sticks out when it turns.
        reach = dice.uniform(0.55, 1.0) if dog else dice.uniform(0.12, 0.3)
        nx, ny = turn * (0.3 + reach), 0.2 + (0.32 * reach if dog else 0.08)
        if dog:
            thick = dice.uniform(0.38, 0.48)
            self.coated(
                frame.limb(((turn * 0.3, 0.2), (nx, ny + 0.2)), thick + 0.06, thick - 0.06), "head", self.pale
            )
            nose = frame.ellipse(nx, ny, 0.2, 0.15)
        else:
            for side in (-1, 1):
                self.coated(frame.ellipse(nx + side * 0.16, ny + 0.24, 0.26, 0.2), "head", self.pale)
            nose = frame.ellipse(nx, ny + 0.1, 0.12, 0.09)
        dark_nose = dice.chance(0.85 if dog else 0.4)
        self.canvas.paint(nose, BLACK if dark_nose else mix(PINK, BLACK, 0.2), part="head")
        mouth = ny + (0.5 if dog else 0.4)
        self.canvas.paint(
            frame.limb(((nx - 0.15, mouth), (nx + 0.15, mouth)), 0.04, 0.04), BLACK, part="head"
        )
        if dog and dice.chance(0.25):
            self.canvas.paint(frame.ellipse(nx, mouth + 0.15, 0.14, 0.22), (0.83, 0.40, 0.42), part="head")

        iris = EYES[dice.below(4)]
        large = dice.uniform(0.13, 0.19) + (0.0 if dog else 0.03)
        for side in (-1, 1):
            x, y = 0.42 * side * (1 - 0.2 * abs(turn)) + 0.3 * turn, -0.12
            self.canvas.paint(
                frame.ellipse(x, y, large, large * 0.9), mix(iris, BLACK, 0.5 * dog), part="head"
            )
            pupil = frame.ellipse(x, y, 0.09, 0.1) if dog else frame.ellipse(x, y, 0.06, 0.14)
            self.canvas.paint(pupil, BLACK, part="head")
        if dog and dice.chance(0.88):
            self._hanging_ears(ear, wide)

    def _pointed_ears(self, fur: Array, inner: Colour, height: float) -> None:
        frame, dice = self.head_frame, self.dice
        for side in (-1, 1):
            lean, top = dice.uniform(-0.08, 0.12), -0.62 - height
            tip = (side * (0.72 + lean), top)
            self.coated(frame.polygon(((side * 0.2, -0.7), (side * 0.9, -0.25), tip), 0.04), "head", fur)
            tip = (side * (0.69 + lean), top + 0.25)
            self.canvas.paint(
                frame.polygon(((side * 0.4, -0.68), (side * 0.76, -0.45), tip)),
                inner,
                grain=self.grain,
                part="head",
            )

    def _hanging_ears(self, fur: Array, wide: float) -> None:
        frame, dice = self.head_frame, self.dice
        length, out = dice.uniform(0.45, 1.15), dice.uniform(0.05, 0.3)
        for side in (-1, 1):
            start = (side * wide * 0.72, -0.58)
            tip = (side * (wide + out), -0.5 + length + dice.uniform(-0.08, 0.08))
            points = bend(start, (side * (wide + out), -0.75), tip, 3)
            self.coated(frame.limb(points, 0.2, dice.uniform(0.22, 0.32)), "head", fur)


def occlude(canvas: Canvas, dice: Dice, head: Frame) -> None:
    """Paint something in front of the animal: blades of grass, a rail or a cushion."""
    x, y = head.centre
    kind = dice.below(3)
    if kind == 0:
        green = (dice.uniform(0.2, 0.4), dice.uniform(0.4, 0.6), dice.uniform(0.1, 0.25))
        for _ in range(4 + dice.below(7)):
            foot, tip = dice.uniform(-4, SIZE + 4), dice.uniform(SIZE * 0.45, SIZE * 0.85)
            blade = bend((foot, SIZE + 2), (foot, tip), (foot + dice.uniform(-9, 9), tip), 3)
            canvas.paint(
                Limb(blade, (dice.uniform(0.8, 1.6), 0.3)), mix(green, dice.colour(), 0.15), shade=0.2
            )
    elif kind == 1:
        shift, slope, thick = (
            dice.uniform(-0.9, 2.0) * head.scale,
            dice.uniform(-12, 12),
            dice.uniform(1.2, 3.2),
        )
        ends = ((-4.0, y + shift - slope), (SIZE + 4.0, y + shift + slope))
        if dice.chance(0.5):
            ends = ((x + shift - slope, -4.0), (x + shift + slope, SIZE + 4.0))
        canvas.paint(Limb(ends, (thick, thick)), mix(dice.colour(), (0.4, 0.3, 0.2), 0.5), shade=0.4)
    else:
        radius = dice.uniform(0.7, 1.5) * head.scale
        centre = (
            x + dice.sign() * dice.uniform(0.9, 2.2) * head.scale,
            y + dice.uniform(-0.5, 2.8) * head.scale,
        )
        cushion = Ellipse(centre, (radius, radius * dice.uniform(0.6, 1.0)), dice.turn(0.6))
        canvas.paint(cushion, dice.colour(), grain=0.08 * texture(dice), shade=0.3)


def develop(canvas: Canvas, dice: Dice) -> NDArray[np.uint8]:
    """Return the photograph: light, colour cast, a touch of blur and sensor noise, as uint8."""
    rgb = canvas.rgb
    contrast, bright = dice.uniform(0.5, 1.1), dice.uniform(-0.14, 0.14)
    fall = 1 + dice.uniform(0, 0.3) * smooth(dice, 1, 1)
    cast = plane(mix((1.0, 1.0, 1.0), dice.colour(0.6, 1.4), 0.3))
    rgb = ((rgb - 0.5) * contrast + 0.5 + bright) * fall * cast
    blur = dice.uniform(0.0, 0.7)
    edge = np.pad(rgb, ((0, 0), (1, 1), (1, 1)), mode="edge")
    across = (edge[:, :, :-2] + edge[:, :, 2:]) / 2
    soft = (across[:, :-2] + across[:, 2:]) / 2
    rgb = rgb + blur * (0.5 * (soft + across[:, 1:-1]) - rgb)
    rgb = rgb + dice.uniform(0.01, 0.07) * (2 * dice.grid(3, SIZE, SIZE) - 1)
    levels = np.floor(np.minimum(np.maximum(rgb, 0.0), 1.0) * 255 + 0.5)
    return np.ascontiguousarray(levels.transpose(1, 2, 0).astype(np.uint8))


def draw(index: int) -> Drawing:
    """Return sample ``index``; every second one is a dog. The same at every call, on every machine."""
    dice = Dice(20_000 + index)
    dog = index % 2 == 1
    canvas = Canvas(dice)
    background(canvas, dice)
    animal = Animal(canvas, dice, dog)
    animal.paint()
    rows, columns = np.nonzero(canvas.head >= 0.5)
    box = (
        float(columns.min()) / SIZE,
        float(rows.min()) / SIZE,
        float(columns.max() + 1) / SIZE,
        float(rows.max() + 1) / SIZE,
    )
    if dice.chance(0.4):
        occlude(canvas, dice, animal.head_frame)
    return Drawing(develop(canvas, dice), (canvas.animal >= 0.5).astype(np.uint8), box, int(dog))
