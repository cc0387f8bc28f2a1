"""Augmentation: training samples seen another way, each with all of its targets.

Geometry first: each augmentation moves the `View`, the window of the image that is looked at, and then inputs
and targets are read through it once, however many augmentations there are. Colours after it. How a target
follows is decided by its task (`moves_of`), so that datasets need no code for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mtlbench.contracts import Batch, Moves, Task, Vector
from mtlbench.data.view import View
from mtlbench.errors import MtlbenchError, did_you_mean
from mtlbench.spec import Spec, bind, format_spec
from mtlbench.tasks import check_moves, is_box, is_normals

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""


# ---- the augmentations -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Augmentation:
    """One way to change a sample; its fields are its parameters. draws: random numbers that a sample
    takes."""

    name: ClassVar[str]
    draws: ClassVar[int]
    moving: ClassVar[bool] = True
    """Whether it moves pixels."""
    cutting: ClassVar[bool] = False
    """Whether something of the image, and with it a label, may get out of sight."""

    def view(self, view: View, drawn: Tensor) -> View:
        """Return the view that it makes of ``view``; drawn: uniform in [0, 1), float64 ``[B, draws]``."""
        return view

    def paint(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Return images float32 ``[B, C, H, W]`` in 0..1 with other colours; drawn: as for `view`."""
        return images


@dataclass(frozen=True)
class Flip(Augmentation):
    """Mirrors the image, left for right.

    p: how probable that is, 0 < p <= 1. The x of normals changes its sign, and labels change where their task
    says so; where it says that a mirrored image has no right label, flip is refused.
    """

    name = "flip"
    draws = 1
    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise MtlbenchError(f"--augment flip: 'p' must be above 0 and at most 1, found {self.p}")

    def view(self, view: View, drawn: Tensor) -> View:
        """See `Augmentation.view`."""
        return view._replace(mirrored=view.mirrored ^ (drawn[:, 0] < self.p))


@dataclass(frozen=True)
class Scale(Augmentation):
    """Zooms: a window of the image at a random place is shown in the image's size.

    factors: what to draw from, each above 0; the window is the image's size over the factor. With one below 1
    the image is smaller than before and black around it. Depth is divided by the factor, since what looks
    larger is nearer; inverse depth is multiplied by it, and normals stay.
    Source: the published code of Liu, Johns & Davison, CVPR 2019, arXiv:1803.10704 (MTAN): factors 1, 1.2 and
    1.5, bilinear images and normals, nearest labels and depth, depth over the factor.
    Deviations: windows may begin between two pixels, so that the zoom is the factor exactly; images, labels
    and boxes are read at the same places, where the published code aligns images by their corners and labels
    by their edges, half a pixel apart; normals have length 1 again.
    """

    name = "scale"
    draws = 3
    cutting = True
    factors: tuple[float, ...] = (1.0, 1.2, 1.5)

    def __post_init__(self) -> None:
        if not self.factors or not all(math.isfinite(factor) and factor > 0 for factor in self.factors):
            raise MtlbenchError(
                f"--augment scale: 'factors' must be finite and above 0, found {list(self.factors)}"
            )

    def view(self, view: View, drawn: Tensor) -> View:
        """See `Augmentation.view`."""
        factors = torch.tensor(self.factors, dtype=torch.float64)
        factor = factors[(drawn[:, 0] * len(factors)).long()]
        height, width = view.height / factor, view.width / factor
        top = view.top + drawn[:, 1] * (view.height - height)
        return view._replace(
            top=top, left=view.left + drawn[:, 2] * (view.width - width), height=height, width=width
        )


@dataclass(frozen=True)
class Crop(Augmentation):
    """Moves the image by whole pixels, down or up and across: a window of its size, cut from it with a rim.

    pad: how far at most, as a share of each side, 0 < pad <= 0.5. What comes into sight is black and has no
    label.
    Source: He et al., CVPR 2016, arXiv:1512.03385, section 4.2 (4 pixels of 32).
    """

    name = "crop"
    draws = 2
    cutting = True
    pad: float = 0.125

    def __post_init__(self) -> None:
        if not 0 < self.pad <= 0.5:
            raise MtlbenchError(f"--augment crop: 'pad' must be above 0 and at most 0.5, found {self.pad}")

    def view(self, view: View, drawn: Tensor) -> View:
        """See `Augmentation.view`."""
        most = [round(self.pad * side) for side in view.size]
        down, across = (
            (drawn[:, i] * (2 * far + 1)).floor() - far for i, far in enumerate(most)
        )  # in pixels as they are shown
        return view._replace(
            top=view.top + down * (view.height / view.size[0]),
            left=view.left + across * (view.width / view.size[1]),
        )


@dataclass(frozen=True)
class Jitter(Augmentation):
    """Changes brightness, contrast and saturation, in this order, each by a random factor.

    brightness, contrast, saturation: factors lie in 1 - this to 1 + this, 0 <= this < 1. They mix the image
    with black, with its mean brightness, and with its own brightness; what leaves 0..1 is cut off. Images
    without three channels keep their saturation. Targets stay, and auxiliary ones are those of the changed
    image.
    Source: Howard, arXiv:1312.5402, who draws the order, too.
    """

    name = "jitter"
    draws = 3
    moving = False
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < 1:
                raise MtlbenchError(
                    f"--augment jitter: '{name}' must be at least 0 and below 1, found {value}"
                )

    def paint(self, images: Tensor, drawn: Tensor) -> Tensor:
        """See `Augmentation.paint`. Each sample's result hangs on nothing but itself, to the last bit."""
        spread = torch.tensor(list(vars(self).values()), dtype=torch.float64)
        factors = (1 + spread * (2 * drawn - 1)).float()[:, :, None, None, None]
        images = (images * factors[:, 0]).clamp_(0, 1)
        # One by one and in NumPy: torch sums in another order for another batch or number of threads.
        means = [float(grey.mean(dtype=np.float64)) for grey in _grey(images).contiguous().numpy()]
        mean = torch.tensor(means, dtype=torch.float32)[:, None, None, None]
        images = _mixed(images, mean, factors[:, 1])
        return _mixed(images, _grey(images), factors[:, 2]) if images.shape[1] == 3 else images


def _grey(images: Tensor) -> Tensor:
    """Return the brightness ``[B, 1, H, W]``; of other than three channels their mean."""
    weights = LUMA if images.shape[1] == 3 else (1 / images.shape[1],) * images.shape[1]
    grey = images[:, :1] * weights[0]
    for channel, weight in enumerate(weights[1:], 1):
        grey = grey + images[:, channel : channel + 1] * weight
    return grey


def _mixed(images: Tensor, other: Tensor, factors: Tensor) -> Tensor:
    return (images * factors + other * (1 - factors)).clamp_(0, 1)


AUGMENTATIONS: dict[str, type[Augmentation]] = {cls.name: cls for cls in (Scale, Crop, Flip, Jitter)}
"""All augmentations by name."""


def choose(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the specs choose as records hold it: ``name`` and all ``parameters`` of each.

    Raises `MtlbenchError` for an unknown name, one that is named twice, and a parameter that does not fit.
    """
    found: dict[str, Augmentation] = {}
    for text in texts:
        spec = Spec.parse(text)
        if spec.name not in AUGMENTATIONS:
            near = did_you_mean(spec.name, AUGMENTATIONS)
            raise MtlbenchError(
                f"unknown augmentation '{spec.name}'.{near} --augment takes {', '.join(AUGMENTATIONS)}"
            )
        if spec.name in found:
            raise MtlbenchError(f"--augment names '{spec.name}' twice")
        cls = AUGMENTATIONS[spec.name]
        found[spec.name] = cls(**bind(spec, cls, (), f"augmentation '{spec.name}'"))
    return [{"name": name, "parameters": dict(vars(one))} for name, one in found.items()]


# ---- what becomes of a batch -------------------------------------------------------------------------------


def moves_of(task: Task) -> Moves | None:
    """Return how a task's target follows its image; None where nobody says.

    It is what the task declares; else labels of a sample stay, labels of pixels move with them, and boxes and
    normals are known by what they are scored by. Other numbers could be anything.
    """
    if task.moves is not None:
        return task.moves
    if task.loss.likelihood == "categorical":
        return "fixed" if isinstance(task.output, Vector) else "map"
    return "box" if is_box(task) else "normals" if is_normals(task) else None


Draw = Callable[[str, int], Tensor]
"""Gives the random numbers of a batch, float64 ``[B, n]``, for an augmentation's name and the number n."""


class Augment:
    """The augmentations of a run, one after another in the order they were named.

    chosen: as `choose` gives them, or a record holds them. tasks: what is trained; other targets are left out
    of what is read. Raises `MtlbenchError` with one line where an input or a target cannot follow. cutting:
    whether a label may get lost.
    """

    def __init__(
        self, chosen: Sequence[Mapping[str, Any]], tasks: Sequence[Task], title: str, shape: tuple[int, ...]
    ) -> None:
        self._chosen = [
            AUGMENTATIONS[one["name"]](
                **{k: tuple(v) if isinstance(v, list) else v for k, v in one["parameters"].items()}
            )
            for one in chosen
        ]
        self._title, self._tasks = title, {task.name: task for task in tasks}
        self.cutting = any(one.cutting for one in self._chosen)
        if len(shape) != 3:
            raise MtlbenchError(f"{title} has no images, which --augment changes")
        for task in tasks:
            self._check(task)

    def _check(self, task: Task) -> None:
        check_moves(task, f"{self._title}: task '{task.name}'")
        moving = [one.name for one in self._chosen if one.moving]
        if moving and moves_of(task) is None:
            raise MtlbenchError(
                f"{self._title}: --augment {','.join(moving)}: nobody says how the numbers of '{task.name}'"
                " follow an image that is moved; its task can, with moves='fixed', 'map', 'depth',"
                " 'inverse-depth', 'normals' or 'box' (in a data file: \"fixed\": true)"
            )
        if "flip" in moving and task.mirror is False:
            raise MtlbenchError(
                f"{self._title}: --augment flip: a mirrored image has no right target for '{task.name}' (its"
                " task says mirror=False); leave flip out"
            )

    def __str__(self) -> str:
        return ", ".join(format_spec(one.name, vars(one)) for one in self._chosen)

    def __call__(self, batch: Batch, draw: Draw) -> Batch:
        """Return a batch of the augmented samples, in the types that they had; ``batch`` stays as it is."""
        images = batch.inputs
        drawn = [draw(one.name, one.draws) for one in self._chosen]
        view = View.whole(len(images), (images.shape[-2], images.shape[-1]))
        for one, numbers in zip(self._chosen, drawn, strict=True):
            view = one.view(view, numbers)
        targets = {
            name: _MOVES.get(moves_of(self._tasks[name]), _fixed)(self._tasks[name], target, view)
            for name, target in batch.targets.items()
            if name in self._tasks
        }
        return Batch(self._painted(_read(images, view, _sharp_image, _smooth_image), drawn), targets)

    def _painted(self, images: Tensor, drawn: Sequence[Tensor]) -> Tensor:
        painting = [
            (one, numbers) for one, numbers in zip(self._chosen, drawn, strict=True) if not one.moving
        ]
        if not painting or not len(images):
            return images
        stored = images.dtype
        painted = images.float() / 255 if stored == torch.uint8 else images
        if not 0 <= painted.min() <= painted.max() <= 1:
            raise MtlbenchError(
                f"{self._title}: --augment jitter needs images in 0..1, and the train split has"
                f" {float(painted.min()):g}..{float(painted.max()):g}"
            )
        for one, numbers in painting:
            painted = one.paint(painted, numbers)
        return (painted * 255).round_().to(stored) if stored == torch.uint8 else painted


Read = Callable[[Tensor, View], Tensor]


def _read(values: Tensor, view: View, sharp: Read, smooth: Read) -> Tensor:
    """Return values ``[B, C, H, W]`` as the view shows them; ``smooth`` reads those between pixels."""
    between = view.between
    if not between.any():
        return sharp(values, view)
    if between.all():
        return smooth(values, view)
    shown = torch.empty(values.shape, dtype=values.dtype)
    for chosen, read in ((~between, sharp), (between, smooth)):
        places = chosen.nonzero().flatten()
        shown.index_copy_(0, places, read(values.index_select(0, places), view.of(chosen)))
    return shown


def _filled(shown: Tensor, view: View, value: float) -> Tensor:
    """Write ``value`` where there is nothing to be shown."""
    outside = view.outside
    return shown if outside is None else shown.masked_fill_(outside, value)


def _sharp_image(images: Tensor, view: View) -> Tensor:
    return _filled(view.nearest(images), view, 0)


def _smooth_image(images: Tensor, view: View) -> Tensor:
    shown = view.bilinear(images.float())
    if images.dtype == torch.uint8:
        shown = shown.round_().to(torch.uint8)
    else:  # weights add up to 1 but for rounding: nothing may become brighter than anything was
        shown.clamp_(images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True))
    return _filled(shown, view, 0)


def _fixed(task: Task, target: Tensor, view: View) -> Tensor:
    return _relabelled(task, target, view)


def _map(task: Task, target: Tensor, view: View) -> Tensor:
    labels = target.dim() == 3
    missing = math.nan if target.is_floating_point() else -1
    shown = _filled(view.nearest(target[:, None] if labels else target), view, missing)
    return _relabelled(task, shown[:, 0] if labels else shown, view)


def _depth(task: Task, target: Tensor, view: View) -> Tensor:
    return _map(task, target, view) / view.zoom.float()[:, None, None, None]


def _inverse_depth(task: Task, target: Tensor, view: View) -> Tensor:
    return _map(task, target, view) * view.zoom.float()[:, None, None, None]


def _normals(task: Task, target: Tensor, view: View) -> Tensor:
    shown = _read(target, view, lambda sharp, part: _map(task, sharp, part), _smooth_normals)
    sign = 1 - 2 * view.mirrored.float()
    return torch.cat([shown[:, :1] * sign[:, None, None, None], shown[:, 1:]], 1)


def _smooth_normals(target: Tensor, view: View) -> Tensor:
    """Mix known vectors around a place to length 1 where the nearest is known; opposite ones give nothing."""
    known = ~_sum(target).isnan()
    shown = view.bilinear(torch.where(known, target, 0))
    length = _sum(shown * shown).sqrt()
    there = _filled(view.nearest(known), view, False) & (length > 1e-3)
    return torch.where(there, shown / length, math.nan)


def _sum(vectors: Tensor) -> Tensor:
    """Return x + y + z as ``[B, 1, H, W]``; much faster than torch's sum over so few."""
    return vectors[:, :1] + vectors[:, 1:2] + vectors[:, 2:]


def _box(task: Task, target: Tensor, view: View) -> Tensor:
    """Boxes are cut off at the edges; what is out of sight has none."""
    height, width = view.size
    start = torch.stack([view.left, view.top, view.left, view.top], 1)
    extent = torch.stack([view.width, view.height, view.width, view.height], 1)
    box = (target.double() * torch.tensor([width, height, width, height]) - start) / extent
    mirrored = torch.stack([1 - box[:, 2], box[:, 1], 1 - box[:, 0], box[:, 3]], 1)
    box = torch.where(view.mirrored[:, None], mirrored, box)
    edge = 1e-6  # a box that only touches the edge, but for rounding, is out of sight
    gone = (box[:, :2] >= 1 - edge).any(1) | (box[:, 2:] <= edge).any(1)
    return box.clamp(0, 1).masked_fill(gone[:, None], math.nan).to(target.dtype)


_MOVES: dict[Moves | None, Callable[[Task, Tensor, View], Tensor]] = {
    "fixed": _fixed,
    "map": _map,
    "depth": _depth,
    "inverse-depth": _inverse_depth,
    "normals": _normals,
    "box": _box,
}


def _relabelled(task: Task, target: Tensor, view: View) -> Tensor:
    """Return labels with those of mirrored samples as their task says."""
    if isinstance(task.mirror, bool) or not view.mirrored.any():
        return target
    becomes = torch.tensor([*task.mirror, -1])  # the last place is that of a missing label
    return torch.where(view.mirrored.view(-1, *(1,) * (target.dim() - 1)), becomes[target], target)
