"""``rooms`` and ``streets``: depth, normals and labels are those of the geometry, the same everywhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from mtlbench.data.prepared import PreparedDataset
from mtlbench.testing import check_dataset
from mtlbench_zoo.datasets import rooms, streets
from mtlbench_zoo.datasets._render import Camera, Look, Scene, View, camera_rays, cast, paint, rotation
from mtlbench_zoo.datasets.rooms import Rooms
from mtlbench_zoo.datasets.streets import Streets

UP = (0.0, 1.0, 0.0)
BACK = Look(0, (0.5, 0.5, 0.5))
NUMBERS = (0, 7, 450)


def views(number: int, size: int = 64) -> list[View]:
    return [rooms.render(number, size)[0], streets.render(number, size)[0]]


def points(view: View) -> np.ndarray:
    """Where each pixel is, in the camera's frame."""
    depth = np.where(np.isinf(view.depth), np.nan, view.depth)
    return np.asarray(camera_rays(*view.depth.shape) * depth[..., None])


# --- the ray caster, against what a pencil says ------------------------------------------------------------


def test_a_sphere_straight_ahead() -> None:
    scene = Scene(spheres=[((0.0, 0.0, 5.0), 1.0, Look(3, (1, 0, 0)))])
    view = cast(scene, Camera((0.0, 0.0, 0.0)), 101, 101, UP)
    assert view.depth[50, 50] == pytest.approx(4.0)
    assert view.normals[50, 50] == pytest.approx([0, 0, -1], abs=1e-9)
    hit = view.labels() == 3
    distance = np.linalg.norm(points(view)[hit] - [0, 0, 5], axis=1)
    assert distance == pytest.approx(np.ones(hit.sum()))
    # The silhouette of a sphere is seen at angles up to asin(r / d).
    tangent = np.hypot(*np.moveaxis(camera_rays(101, 101)[..., :2], -1, 0))
    assert (hit == (tangent < np.tan(np.arcsin(1 / 5)))).mean() > 0.999
    assert np.isinf(view.depth[~hit]).all()
    assert np.isnan(view.normals[~hit]).all()


def test_a_box_hides_what_is_behind_it_and_shows_its_nearest_face() -> None:
    boxes = [
        ((-1.0, -1.0, 3.0), (1.0, 1.0, 4.0), Look(1, (1, 0, 0))),
        ((-9.0, -9.0, 6.0), (9.0, 9.0, 7.0), BACK),
    ]
    view = cast(Scene(boxes=boxes), Camera((0.0, 0.0, 0.0)), 60, 60, UP)
    front = view.labels() == 1
    assert (view.depth[front] == 3).all()
    assert (view.depth[~front] == 6).all()
    assert (view.normals == [0, 0, -1]).all()
    expected = (np.abs(camera_rays(60, 60)[..., :2]) < 1 / 3).all(-1)
    assert (front == expected).all()


def test_the_ground_ends_at_the_horizon() -> None:
    view = cast(Scene(ground=BACK), Camera((0.0, 1.5, 0.0)), 64, 64, UP)
    assert np.isinf(view.depth[:32]).all()
    rows = camera_rays(64, 64)[32:, :, 1]
    assert view.depth[32:] == pytest.approx(1.5 / rows)
    assert (view.normals[32:] == [0, -1, 0]).all()
    assert (view.labels(sky=4)[:32] == 4).all()


def test_turning_the_camera_is_a_rotation() -> None:
    axes = np.array(rotation(Camera((0.0, 0.0, 0.0), 0.3, 0.2)))
    assert axes @ axes.T == pytest.approx(np.eye(3), abs=1e-12)
    assert np.linalg.det(axes) == pytest.approx(-1)  # right, down, ahead, in a world whose y is up
    yaw, pitch = 2 * np.arctan(0.3), 2 * np.arctan(0.2)
    assert axes[2] == pytest.approx(
        [np.sin(yaw) * np.cos(pitch), -np.sin(pitch), np.cos(yaw) * np.cos(pitch)]
    )
    assert axes[0] == pytest.approx([np.cos(yaw), 0, -np.sin(yaw)])


def test_light_from_above_is_brighter_on_top() -> None:
    scene = Scene(boxes=[((-1.0, -2.0, 3.0), (1.0, -0.5, 6.0), Look(0, (0.5, 0.5, 0.5)))])
    view = cast(scene, Camera((0.0, 0.0, 0.0)), 64, 64, UP)
    image = paint(view, np.random.RandomState(0)).astype(float).mean(-1)
    top, front = view.normals[..., 1] < -0.9, view.normals[..., 2] < -0.9
    assert top.sum() > 50
    assert image[top].mean() > 1.5 * image[front].mean()


# --- whole scenes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", NUMBERS)
def test_normals_are_unit_and_face_the_camera(number: int) -> None:
    for view in views(number):
        seen = np.isfinite(view.depth)
        assert (view.depth[seen] > 0).all()
        assert np.linalg.norm(view.normals[seen], axis=1) == pytest.approx(np.ones(seen.sum()))
        assert (np.einsum("ij,ij->i", view.normals[seen], points(view)[seen]) < 0).all()


@pytest.mark.parametrize("number", NUMBERS)
def test_normals_are_the_gradient_of_the_points(number: int) -> None:
    """The cross product of differences between neighbours, wherever all of them lie on one flat surface."""
    for view in views(number, 96):
        place = points(view)
        across, down = place[1:-1, 2:] - place[1:-1, :-2], place[2:, 1:-1] - place[:-2, 1:-1]
        with np.errstate(invalid="ignore"):
            found = np.cross(down, across)
            found /= np.linalg.norm(found, axis=-1, keepdims=True)
        same = np.ones(found.shape[:2], bool)
        inner = np.s_[1:-1, 1:-1]
        for near in (np.s_[1:-1, 2:], np.s_[1:-1, :-2], np.s_[2:, 1:-1], np.s_[:-2, 1:-1]):
            same &= (view.look[near] == view.look[inner]) & (view.side[near] == view.side[inner])
        same &= (view.look[inner] >= 0) & (view.side[inner] < 3)
        # The left and the right wall are one look and one side, but two planes.
        same &= (np.abs(np.diff(view.normals[1:-1], axis=1)).max(-1) < 0.5)[:, 1:]
        assert same.mean() > 0.5
        assert found[same] == pytest.approx(view.normals[inner][same], abs=1e-6)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_points_of_the_floor_lie_on_one_plane(number: int) -> None:
    view = views(number)[0]
    floor = view.labels() == rooms.CLASSES.index("floor")
    assert floor.sum() > 20
    height = np.einsum("ij,ij->i", points(view)[floor], view.normals[floor])
    assert height.std() < 1e-9
    assert 1.2 <= -height.mean() <= 1.7
    assert np.ptp(view.normals[floor], axis=0).max() < 1e-12
    assert view.point[floor][:, 1] == pytest.approx(np.zeros(floor.sum()), abs=1e-9)


def test_a_scene_is_the_same_everywhere() -> None:
    """Pinned: where this fails, the version in `generated` must change, or old and new files mix."""
    found = {}
    for cls in (Rooms, Streets):
        digest = hashlib.sha256()
        for number in NUMBERS:
            row = cls.row(Path(), number, 32)
            for name, values in [("", row.inputs), *sorted(row.targets.items())]:
                digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
        found[cls.generated] = digest.hexdigest()[:16]
    assert found == {"rooms, version 1": "bc4e091a30d88586", "streets, version 1": "d8a0362902c0f623"}


@pytest.mark.parametrize("cls", [Rooms, Streets])
def test_they_are_datasets_that_are_made_once(
    cls: type[PreparedDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cls, "scenes", {"train": 6, "val": 2, "test": 2})
    dataset = cls(tmp_path, 32)
    check_dataset(dataset)
    assert dataset.input_shape == (3, 32, 48 if cls is Rooms else 64)
    assert dataset.title.endswith("(rendered)")
    path = tmp_path / f"{cls.name}-32.h5"
    before = path.stat().st_mtime_ns
    assert cls(tmp_path, 32).fingerprint() == dataset.fingerprint()
    assert path.stat().st_mtime_ns == before
    monkeypatch.setattr(cls, "generated", "another version")
    cls(tmp_path, 32)
    assert path.stat().st_mtime_ns != before


def test_every_class_is_there_and_depth_has_its_range() -> None:
    seen: list[set[int]] = [set(), set()]
    for number in range(40):
        both = views(number, 32)
        for found, view, sky in zip(seen, both, (-1, 4), strict=True):
            found |= set(view.labels(sky).flatten().tolist())
        assert both[0].depth.min() > 0.05
        assert both[0].depth.max() < 9
    assert seen == [set(range(13)), set(range(7))]


def test_far_and_sky_have_no_depth_in_streets() -> None:
    row = Streets.row(Path(), 3, 64)
    inverse, labels = (
        torch.from_numpy(row.targets["depth"])[..., 0],
        torch.from_numpy(row.targets["segmentation"]),
    )
    assert inverse[labels == streets.CLASSES.index("sky")].isnan().all()
    known = inverse[~inverse.isnan()]
    assert (known > 1 / streets.FAR).all()
    assert known.numel() > 0.5 * labels.numel()
