"""Streamed metrics of maps equal plain NumPy over all pixels at once, whatever the batches are."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlbench.contracts import Map, Metric, Task
from mtlbench.errors import MtlbenchError
from mtlbench.losses import Cosine
from mtlbench.metrics import (
    abs_error,
    angle_mean,
    angle_median,
    angle_within,
    iou,
    mae,
    mse,
    pixel_accuracy,
    rel_error,
    rmse,
)
from mtlbench.training.evaluate import Meters

ANGLES = (angle_mean(), angle_median(), angle_within(11.25), angle_within(22.5), angle_within(30.0))
ERRORS: dict[str, tuple[Metric, Callable[..., float]]] = {
    "abs": (abs_error("m"), lambda p, t: np.abs(p - t).mean()),
    "rel": (rel_error(), lambda p, t: (np.abs(p - t) / np.abs(t)).mean()),
    "mse": (mse(), lambda p, t: ((p - t) ** 2).mean()),
    "mae": (mae("kg", 3.0), lambda p, t: 3 * np.abs(p - t).mean()),
    "rmse": (rmse("kg", 3.0), lambda p, t: 3 * np.sqrt(((p - t) ** 2).mean())),
}


def score(metric: Metric, output: Tensor, target: Tensor, cuts: tuple[int, ...] = ()) -> float:
    accumulator = metric.make()
    for part in zip(output.tensor_split(cuts), target.tensor_split(cuts), strict=True):
        accumulator.update(*part)
    return float(accumulator.compute())


@pytest.mark.parametrize("name", ERRORS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), missing=st.sampled_from([0.0, 0.5]), cut=st.integers(0, 5))
def test_errors_equal_numpy_in_any_batching(name: str, seed: int, missing: float, cut: int) -> None:
    g = torch.Generator().manual_seed(seed)
    output, target = torch.randn(5, 1, 4, 3, generator=g), 1 + torch.rand(5, 1, 4, 3, generator=g)
    lost = torch.rand(target.shape, generator=g) < missing
    metric, by_numpy = ERRORS[name]
    expected = by_numpy(output[~lost].double().numpy(), target[~lost].double().numpy())
    found = score(metric, output, target.masked_fill(lost, torch.nan), (cut,))
    assert found == pytest.approx(expected, rel=1e-6)


def by_numpy(output: Tensor, target: Tensor) -> dict[str, float]:
    """All angles at once, by the arc cosine in float64."""
    p, t = (x.movedim(1, -1).reshape(-1, 3).double().numpy() for x in (output, target))
    p, t = (x[~np.isnan(t).any(1)] for x in (p, t))
    cosine = (p * t).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(t, axis=1)
    angles = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    found = {"angle_mean": angles.mean(), "angle_median": np.median(angles)}
    return found | {f"within_{limit:g}": (angles < limit).mean() for limit in (11.25, 22.5, 30)}


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.02, 0.3, 3.0]),
    missing=st.sampled_from([0.0, 0.4]),
    cut=st.integers(0, 4),
)
def test_angles_equal_numpy_in_any_batching(seed: int, spread: float, missing: float, cut: int) -> None:
    g = torch.Generator().manual_seed(seed)
    target = torch.nn.functional.normalize(torch.randn(4, 3, 12, 11, generator=g), dim=1)
    output = (target + spread * torch.randn(target.shape, generator=g)) * 5
    lost = torch.rand(4, 1, 12, 11, generator=g) < missing
    target = torch.where(lost, torch.nan, target)
    expected = by_numpy(output, target)
    for metric in ANGLES:
        found = score(metric, output, target, (cut,))
        # A median lies between two angles of the sample; with few of them they can be far apart.
        slack = 0.3 * spread * 57 if metric.name == "angle_median" else 2e-3
        assert found == pytest.approx(expected[metric.name], abs=slack), metric.name


def test_the_median_is_right_to_a_bin_and_small_angles_are_seen() -> None:
    degrees = torch.linspace(0, 60, 100_001, dtype=torch.float64)
    output = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin(), torch.zeros_like(degrees)], 1)
    target = torch.tensor([1.0, 0.0, 0.0]).expand(len(degrees), 3)
    assert score(angle_median(), output.float(), target) == pytest.approx(30, abs=0.01)
    assert score(angle_within(11.25), output.float(), target) == pytest.approx(11.25 / 60, abs=1e-4)
    tiny = torch.tensor([[1.0, 1e-4, 0.0]])
    assert score(angle_mean(), tiny, target[:1]) == pytest.approx(math.degrees(1e-4), rel=1e-3)


def test_opposite_and_empty_vectors() -> None:
    target = torch.tensor([[0.0, 0.0, 1.0]])
    assert score(angle_mean(), -target, target) == pytest.approx(180)
    assert score(angle_median(), -target, target) == pytest.approx(180, abs=0.01)
    assert score(angle_mean(), torch.zeros(1, 3), target) == 90


def test_no_label_is_nan_and_a_wrong_shape_is_refused() -> None:
    nothing = torch.full((2, 3, 4, 4), torch.nan)
    for metric in (*ANGLES, *(metric for metric, _ in ERRORS.values())):
        assert math.isnan(score(metric, torch.randn(2, 3, 4, 4), nothing)), metric.name
    with pytest.raises(MtlbenchError, match=r"target of shape \(2, 4, 4\)"):
        abs_error().make().update(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))


def test_an_unlabelled_relative_error_of_nothing_stays_out() -> None:
    target = torch.tensor([[torch.nan], [2.0]])
    assert score(rel_error(), torch.tensor([[0.0], [1.0]]), target) == 0.5


def test_metrics_that_accumulate_the_same_share_one_state_and_score_as_apart() -> None:
    task = Task("normal", Map(3), Cosine(), ANGLES)
    meters = Meters(task)
    assert len(meters.compute_groups) == 1
    g = torch.Generator().manual_seed(0)
    batches = [(torch.randn(2, 3, 5, 5, generator=g), torch.randn(2, 3, 5, 5, generator=g)) for _ in range(3)]
    for batch in batches:
        meters.update(*batch)
    whole = [torch.cat(part) for part in zip(*batches, strict=True)]
    assert meters.scores() == {metric.name: score(metric, *whole) for metric in ANGLES}
    classes = Meters(Task("seg", Map(4), Cosine(), (iou(4), pixel_accuracy(4), abs_error())))
    shared = [[classes.names[key] for key in group] for group in classes.compute_groups.values()]
    assert shared == [["iou", "pixel_accuracy"], ["abs_error"]]


def test_memory_does_not_grow_and_they_travel() -> None:
    for metric in (*ANGLES, abs_error()):
        accumulator = pickle.loads(pickle.dumps(metric)).make()
        sizes = set()
        for _ in range(3):
            accumulator.update(torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8))
            sizes.add(sum(s.numel() for s in accumulator.metric_state.values()))
        assert len(sizes) == 1


def test_units_and_directions() -> None:
    found = {m.name: (m.unit, m.higher_is_better) for m in (*ANGLES, abs_error("m"), rel_error())}
    assert found["angle_mean"] == found["angle_median"] == ("deg", False)
    assert found["within_11.25"] == ("1", True)
    assert (found["abs_error"], found["rel_error"]) == (("m", False), ("1", False))
