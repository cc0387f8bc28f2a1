"""Augmentation: images and all their targets go the same way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlbench.contracts import Batch, Map, Task, Vector
from mtlbench.data.augment import Augment, Crop, Flip, Scale, View, choose
from mtlbench.data.memory import MemorySplit
from mtlbench.errors import MtlbenchError
from mtlbench.losses import L1, MSE, CrossEntropy
from mtlbench.metrics import abs_error, accuracy, mae
from mtlbench.spec import split
from mtlbench.tasks import box, classification, depth, make_tasks, normals, regression, segmentation
from mtlbench.training.augmented import augmented
from mtlbench_zoo.datasets.rooms import Rooms

H, W = 12, 20
TASKS = (
    segmentation("pixel", H * W),
    depth("depth"),
    depth("inverse", "1/m", inverse=True),
    normals("normals"),
    box("box"),
    classification("label", 3),
)
ALL = "scale[factors=[0.75,1,1.3,2]],crop[pad=0.2],flip,jitter"
UNIT = torch.tensor([0.6, -0.48, 0.64])

Draw = Callable[[str, int], Tensor]


def made(text: str, tasks: tuple[Task, ...] = TASKS, shape: tuple[int, ...] = (3, H, W)) -> Augment:
    return Augment(choose(split(text)), tasks, "scene", shape)


def scene(edges: Tensor) -> Batch:
    """Every pixel of every target says where it is; a corner has no label. edges: ``[B, 4]`` in pixels."""
    count = len(edges)
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    missing = (y < 2) & (x < 3)
    near = torch.where(missing, torch.nan, 1.0 + x)
    images = torch.stack([(x + 0.5) / W, (y + 0.5) / H, torch.ones(H, W)])
    directions = torch.where(missing, torch.nan, UNIT[:, None, None])
    targets = {
        "pixel": torch.where(missing, -1, y * W + x),
        "depth": near[None],
        "inverse": near[None],
        "normals": directions,
        "label": torch.tensor(2),
    }
    targets = {name: value.expand(count, *value.shape).clone() for name, value in targets.items()}
    targets["box"] = edges.float() / torch.tensor([W, H, W, H])
    return Batch(images.expand(count, 3, H, W).clone(), targets)


edges = st.tuples(st.integers(0, W - 1), st.integers(0, H - 1), st.integers(1, W), st.integers(1, H)).filter(
    lambda e: e[0] < e[2] and e[1] < e[3]
)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    corners=st.lists(edges, min_size=1, max_size=4),
    text=st.sampled_from(["scale", "scale,flip", "crop,flip", "flip,scale[factors=[0.6,2.3]],crop", "crop"]),
)
def test_image_and_targets_tell_the_same_place(seed: int, corners: list[Any], text: str) -> None:
    batch = scene(torch.tensor(corners))
    found = augmented(MemorySplit(batch.inputs, batch.targets), made(text), seed, 0, "").fetch(
        torch.arange(len(corners))
    )
    for i, (left, top, right, bottom) in enumerate(corners):
        red, green, there = found.inputs[i].double()
        seen = there > 0.5  # beyond the edge of the image all is black
        x, y = red * W, green * H
        zoom = _zoom(x, y, seen)
        inside = seen & (x > 0.51) & (x < W - 0.51) & (y > 0.51) & (y < H - 0.51)
        pixel, reach = found.targets["pixel"][i], found.targets["depth"][i, 0]
        known = (pixel >= 0) & inside
        # Places that lie between two pixels may round to either.
        clear = known & ((x - x.round()).abs() > 1e-3) & ((y - y.round()).abs() > 1e-3)
        assert (pixel[clear] % W == x[clear].floor()).all()
        assert (pixel[clear] // W == y[clear].floor()).all()
        assert ((pixel == -1) >= ~seen).all(), "what was not in the image has no label"
        assert torch.equal(reach.isnan(), pixel == -1)
        torch.testing.assert_close(reach[pixel >= 0] * zoom, 1.0 + pixel[pixel >= 0] % W)
        back = found.targets["inverse"][i, 0]
        torch.testing.assert_close(back[pixel >= 0] / zoom, 1.0 + pixel[pixel >= 0] % W)
        vectors = found.targets["normals"][i]
        assert torch.equal(vectors.isnan().any(0), pixel == -1)
        assert torch.equal(vectors.isnan().all(0), pixel == -1)
        sign = -1 if _mirrored(x, seen) else 1
        expected = UNIT * torch.tensor([sign, 1, 1])
        torch.testing.assert_close(
            vectors[:, pixel >= 0], expected[:, None].expand(3, int((pixel >= 0).sum()))
        )
        _check_box(found.targets["box"][i], (x, y, clear), (left, top, right, bottom))
        assert found.targets["label"][i] == 2


def _zoom(x: Tensor, y: Tensor, seen: Tensor) -> float:
    """Return the zoom from the steps between pixels in the middle of what is seen."""
    steps = (x[:, 1:] - x[:, :-1]).abs()[seen[:, 1:] & seen[:, :-1]]
    zoom = 1 / float(steps.median())
    downs = (y[1:] - y[:-1])[seen[1:] & seen[:-1]]
    assert 1 / float(downs.median()) == pytest.approx(zoom, rel=1e-3), "as much down as across"
    return min((0.6, 1.0, 1.2, 1.5, 2.3), key=lambda factor: abs(factor - zoom))


def _mirrored(x: Tensor, seen: Tensor) -> bool:
    return bool((x[:, 1:] - x[:, :-1])[seen[:, 1:] & seen[:, :-1]].median() < 0)


def _check_box(found: Tensor, places: tuple[Tensor, ...], corners: tuple[int, ...]) -> None:
    """A shown pixel lies in the moved box exactly when the place that it shows lay in the box."""
    x, y, clear = places
    left, top, right, bottom = corners
    was = (x > left) & (x < right) & (y > top) & (y < bottom)
    if found.isnan().any():
        assert found.isnan().all()
        assert not (was & clear).any()
        return
    assert 0 <= found.min() <= found.max() <= 1
    assert (found[:2] < found[2:]).all()
    down, across = ((torch.arange(side, dtype=torch.float64) + 0.5) / side for side in (H, W))
    xmin, ymin, xmax, ymax = found.double().tolist()
    now = ((across > xmin) & (across < xmax))[None] & ((down > ymin) & (down < ymax))[:, None]
    assert torch.equal(now[clear], was[clear])


def chosen(**numbers: list[float]) -> Draw:
    """Give the same numbers to every sample."""
    return lambda name, count: torch.tensor([numbers[name]], dtype=torch.float64).expand(-1, count)


def test_what_leaves_the_image_is_missing_and_what_is_cut_is_clipped() -> None:
    """Zoom 2 at the top left: the window is 10 x 6 pixels."""
    batch = scene(torch.tensor([[12, 1, 18, 5]]))
    look = chosen(scale=[0.0, 0.0, 0.0])
    found = made("scale[factors=[2]]")(batch, look).targets
    assert found["box"].isnan().all()
    assert (found["pixel"][0, :4, :6] == -1).all(), "the corner without labels has grown"
    assert (found["pixel"][0, 4:, :] >= 0).all()
    assert found["depth"][0, 0, 11, 19] == (1 + 9) / 2
    cut = made("scale[factors=[2]]")(scene(torch.tensor([[5, 1, 18, 9]])), look).targets["box"]
    torch.testing.assert_close(cut, torch.tensor([[0.5, 1 / 6, 1.0, 1.0]]))
    gone = scene(torch.tensor([[5, 1, 18, 9]]))
    gone.targets["box"].fill_(torch.nan)  # type: ignore[index]
    assert made("scale,flip")(gone, chosen(scale=[0.9, 0.5, 0.5], flip=[0.1])).targets["box"].isnan().all()


@pytest.mark.parametrize("real", [False, True])
def test_flipped_twice_is_as_before(real: bool) -> None:
    before = scene(torch.tensor([[12, 1, 18, 5], [0, 0, 5, 12]]))
    if not real:
        before = Batch((before.inputs * 255).to(torch.uint8), before.targets)
    flip, always = made("flip[p=1]"), chosen(flip=[0.3])
    once = flip(before, always)
    twice = flip(once, always)
    assert torch.equal(once.inputs, before.inputs.flip(-1))
    assert once.inputs.dtype == before.inputs.dtype
    assert torch.equal(twice.inputs, before.inputs)
    for name, target in before.targets.items():
        torch.testing.assert_close(twice.targets[name], target, equal_nan=True, rtol=0, atol=1e-7)
    assert (once.targets["normals"][:, 0, 5, 5] == -UNIT[0]).all()


def test_nothing_is_written_into_what_was_read() -> None:
    batch = scene(torch.tensor([[12, 1, 18, 5]] * 8))
    kept = scene(torch.tensor([[12, 1, 18, 5]] * 8))
    augmented(MemorySplit(batch.inputs, batch.targets), made(ALL), 0, 0, "").fetch(torch.arange(8))
    made(ALL)(batch, lambda name, count: torch.rand(8, count, dtype=torch.float64))
    assert torch.equal(batch.inputs, kept.inputs)
    for name, target in kept.targets.items():
        torch.testing.assert_close(batch.targets[name], target, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("stored", [torch.uint8, torch.float32])
def test_a_draw_hangs_on_seed_epoch_and_sample_alone(stored: torch.dtype) -> None:
    """To the last bit, whatever else is in the batch, in whichever order."""
    draw = torch.Generator().manual_seed(0)
    batch = scene(torch.tensor([[12, 1, 18, 5]] * 30))
    images = torch.rand(batch.inputs.shape, generator=draw)
    images = (images * 255).to(torch.uint8) if stored == torch.uint8 else images
    samples = MemorySplit(images, batch.targets)

    def read(indices: list[int], seed: int = 3, epoch: int = 1, text: str = ALL, part: str = "") -> Tensor:
        found = augmented(samples, made(text), seed, epoch, part).fetch(torch.tensor(indices))
        rest = [target.double().reshape(len(target), -1) for target in found.targets.values()]
        return torch.cat([found.inputs.double().flatten(1), *rest], 1).nan_to_num(nan=-7)

    whole = read(list(range(30)))
    assert torch.equal(read([7, 21, 0]), whole[[7, 21, 0]])
    assert torch.equal(torch.cat([read([i]) for i in range(5)]), whole[:5])
    for other in (read([*range(30)], seed=4), read([*range(30)], epoch=2), read([*range(30)], part="a")):
        assert (other != whole).any(1).sum() > 20
    still = "jitter[brightness=0,contrast=0,saturation=0]"
    flips = (read([*range(30)], text="flip") != read([*range(30)], text=still)).any(1)
    assert 5 < flips.sum() < 25
    twice = read([*range(30)], text=f"crop,flip,scale[factors=[1]],{still}")
    assert torch.equal(twice, read([*range(30)], text="crop,flip")), "one augmentation moves no other's draws"


def test_factors_and_places_are_drawn_evenly() -> None:
    numbers = torch.rand(3000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = View.whole(3000, (H, W))
    seen = Scale((1.0, 1.2, 1.5)).view(whole, numbers)
    assert [int((seen.zoom - factor).abs().lt(1e-9).sum()) for factor in (1.0, 1.2, 1.5)] == pytest.approx(
        [1000] * 3, rel=0.1
    )
    assert (seen.top >= 0).all()
    assert (seen.top + seen.height <= H + 1e-9).all()
    moved = Crop(0.25).view(whole, numbers)
    assert sorted(set(moved.left.tolist())) == list(range(-5, 6))
    assert sorted(set(moved.top.tolist())) == list(range(-3, 4))
    assert 0.25 < float(Flip(0.3).view(whole, numbers).mirrored.double().mean()) < 0.35


def test_colours_change_as_stated_and_stay_in_range() -> None:
    image = torch.tensor([0.2, 0.6, 0.4])[None, :, None, None].repeat(1, 1, 4, 4)
    image[..., :2] *= 0.5
    batch = Batch(image, {})
    half = chosen(jitter=[1.0, 0.5, 0.5])
    brighter = made("jitter[brightness=0.5,contrast=0.5]", ())(batch, half).inputs
    torch.testing.assert_close(brighter, image * 1.5)
    grey = (image * torch.tensor([0.299, 0.587, 0.114])[None, :, None, None]).sum(1, keepdim=True)
    flat = made("jitter[contrast=0.9]", ())(batch, chosen(jitter=[0.5, 0.0, 0.5])).inputs
    torch.testing.assert_close(flat, 0.1 * image + 0.9 * grey.mean())
    pale = made("jitter[saturation=0.9]", ())(batch, chosen(jitter=[0.5, 0.5, 0.0])).inputs
    torch.testing.assert_close(pale, 0.1 * image + 0.9 * grey)
    full = made("jitter[brightness=0.9,contrast=0.9]", ())(batch, chosen(jitter=[1.0] * 3)).inputs
    assert 0 <= full.min() < full.max() <= 1
    one = Batch((image[:, :1] * 255).to(torch.uint8), {})
    assert made("jitter", (), (1, 4, 4))(one, half).inputs.dtype == torch.uint8
    with pytest.raises(
        MtlbenchError, match=r"jitter needs images in 0\.\.1, and the train split has 0\.5\.\.3"
    ):
        made("jitter", ())(Batch(image * 5, {}), half)


def test_labels_become_those_of_the_mirror_where_a_task_says_so() -> None:
    tasks = make_tasks(
        {
            "hand": {"kind": "classification", "classes": 2, "mirror": [1, 0]},
            "count": {"kind": "classification", "classes": 6},
            "arms": {"kind": "segmentation", "classes": 3, "mirror": [0, 2, 1]},
            "left": {"kind": "binary", "mirror": [1, 0]},
        }
    )
    arms = torch.tensor([[0, 1, 2, -1]]).expand(4, 4, 4)
    targets = {
        "hand": torch.tensor([0, 1, -1, 0]),
        "count": torch.tensor([3, 3, -1, 5]),
        "arms": arms,
        "left": torch.tensor([1, 0, -1, 1]),
    }
    flips = torch.tensor([[0.1], [0.1], [0.1], [0.9]], dtype=torch.float64)
    found = made("flip", tasks, (1, 4, 4))(
        Batch(torch.zeros(4, 1, 4, 4), targets), lambda name, count: flips
    ).targets
    assert found["hand"].tolist() == [1, 0, -1, 0]
    assert found["left"].tolist() == [0, 1, -1, 1]
    assert found["count"].tolist() == [3, 3, -1, 5]
    assert found["arms"][0, 0].tolist() == [-1, 1, 2, 0]
    assert found["arms"][3, 0].tolist() == [0, 1, 2, -1]


@pytest.mark.parametrize(
    ("mirrored", "factor"), [(False, 1.0), (True, 1.0), (False, 1.5), (True, 1.2)], ids=str
)
def test_depth_and_normals_still_fit_the_camera(mirrored: bool, factor: float) -> None:
    """In a rendered room neighbours of one surface lie in the plane that their normal is of."""
    rows = [Rooms.row(Path(), number, 64) for number in (0, 1, 2)]
    tasks = make_tasks(Rooms.declared)
    rooms = Batch(
        torch.from_numpy(np.stack([row.inputs for row in rows])).permute(0, 3, 1, 2),
        {
            name: torch.from_numpy(np.stack([row.targets[name] for row in rows])).float().permute(0, 3, 1, 2)
            for name in ("depth", "normals")
        },
    )
    numbers = {"scale": [0.0, 0.3, 0.8], "flip": [0.1]}
    text = f"scale[factors=[{factor}]]" + (",flip" if mirrored else "")
    found = made(text, tasks, (3, 64, 96))(rooms, chosen(**numbers)).targets
    view = Scale((factor,)).view(View.whole(1, (64, 96)), torch.tensor([numbers["scale"]]))
    top, left = float(view.top), float(view.left)
    if mirrored:
        left = 96 - left - float(view.width)
    # The zoomed camera: a longer focal length, and the middle of the room's image where it now is.
    focal, x0, y0 = 0.7 * 96 * factor, (48 - left) * factor, (32 - top) * factor
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(96) + 0.5, indexing="ij")
    rays = torch.stack([(x - x0) / focal, (y - y0) / focal, torch.ones(64, 96)])
    points, vectors = rays * found["depth"] * factor, found["normals"]

    def misfit(vectors: Tensor) -> float:
        """The sine of the angle between a surface and a step along it, of 12 pixels: depth has steps."""
        step = points[..., 12:] - points[..., :-12]
        same = (vectors[..., 12:] * vectors[..., :-12]).sum(1) > 0.999
        off = (vectors[..., 12:] * step).sum(1).abs() / step.norm(dim=1)
        return float(off[same].median())

    right, wrong = misfit(vectors), misfit(vectors * torch.tensor([-1, 1, 1])[:, None, None])
    assert right < 0.001
    assert wrong > 0.2
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3, 64, 96), rtol=0, atol=2e-3)


ODD = Task("odd", Vector(4), MSE(), (mae("m"),))


@pytest.mark.parametrize(
    ("text", "tasks", "message"),
    [
        ("flap", (), "unknown augmentation 'flap'. Did you mean 'flip'? --augment takes scale, crop"),
        ("flip,flip[p=1]", (), "--augment names 'flip' twice"),
        ("flip[q=1]", (), "augmentation 'flip': unknown parameter 'q'"),
        ("flip[p=0]", (), "--augment flip: 'p' must be above 0 and at most 1, found 0.0"),
        ("scale[factors=[]]", (), "--augment scale: 'factors' must be finite and above 0, found []"),
        ("scale[factors=[1,-1]]", (), "'factors' must be finite and above 0, found [1.0, -1.0]"),
        ("crop[pad=1]", (), "'pad' must be above 0 and at most 0.5, found 1.0"),
        ("jitter[contrast=1]", (), "'contrast' must be at least 0 and below 1, found 1.0"),
        ("jitter,flip", (ODD,), "--augment flip: nobody says how the numbers of 'odd' follow an image"),
        ("crop", (Task("heat", Map(1), L1(), (abs_error("K"),)),), "the numbers of 'heat' follow an image"),
        ("scale", (regression("age"),), "the numbers of 'age' follow an image"),
        (
            "flip",
            (Task("digit", Vector(3), CrossEntropy(), (accuracy(3),), mirror=False),),
            "--augment flip: a mirrored image has no right target for 'digit' (its task says mirror=False)",
        ),
        (
            "jitter",
            (Task("wide", Map(2), L1(), (mae("m"),), moves="normals"),),
            "scene: task 'wide': moves='normals' is not for a map of 2",
        ),
        (
            "jitter",
            (Task("hand", Vector(2), CrossEntropy(), (accuracy(2),), mirror=(1, 2)),),
            "scene: task 'hand': 'mirror' must name one of its 2 classes for each of them, found [1, 2]",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_clear_line(text: str, tasks: tuple[Task, ...], message: str) -> None:
    with pytest.raises(MtlbenchError) as error:
        made(text, tasks)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_needs_no_answer_is_not_asked() -> None:
    made("jitter", (ODD,))
    made("scale,crop,flip", (regression("age", fixed=True),))
    made("scale,crop,jitter", (Task("digit", Vector(3), CrossEntropy(), (accuracy(3),), mirror=False),))
    with pytest.raises(MtlbenchError, match="scene has no images, which --augment changes"):
        made("flip", (), (7,))


def test_declarations_of_a_data_file() -> None:
    tasks = make_tasks(
        {
            "age": {"kind": "regression", "fixed": True},
            "far": {"kind": "depth", "inverse": True},
            "text": {"kind": "binary", "mirror": False},
        }
    )
    assert [(task.moves, task.mirror) for task in tasks] == [
        ("fixed", True), ("inverse-depth", True), (None, False)
    ]  # fmt: skip
    for wrong, message in (
        (
            {"kind": "classification", "classes": 3, "mirror": [1, 0]},
            "'mirror' must name one of its 3 classes",
        ),
        ({"kind": "classification", "classes": 2, "mirror": "no"}, "'mirror' must be true, false or a list"),
        ({"kind": "depth", "mirror": [0]}, "'mirror' must name one of its 0 classes"),
        ({"kind": "regression", "fixed": 1}, "'fixed' must be true or false"),
        ({"kind": "depth", "fixed": True}, "a depth has no 'fixed'"),
    ):
        with pytest.raises(MtlbenchError) as error:
            make_tasks({"it": wrong}, "file: ")
        assert str(error.value).startswith("file: task 'it'"), error.value
        assert message in str(error.value)
