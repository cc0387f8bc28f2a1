"""The metrics equal a plain NumPy computation, whatever the batches are, and are defined everywhere."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics import classification as tm

from mtlbench.contracts import Metric
from mtlbench.metrics import accuracy, box_iou, box_l2, dice, f1, iou, pixel_accuracy

NAN = float("nan")
ALL = [
    iou(),
    dice(),
    pixel_accuracy(),
    accuracy(),
    f1(),
    iou(3),
    dice(3),
    pixel_accuracy(3),
    accuracy(3),
    f1(3),
]


def score(metric: Metric, output: Tensor, target: Tensor, cuts: tuple[int, ...] = ()) -> float:
    accumulator = metric.make()
    for part in zip(output.tensor_split(cuts), target.tensor_split(cuts), strict=True):
        accumulator.update(*part)
    return float(accumulator.compute())


def by_numpy(
    name: str, predicted: NDArray[np.int64], target: NDArray[np.int64], classes: int | None
) -> float:
    keep = target != -1
    p, t = predicted[keep], target[keep]
    if len(t) == 0:
        return NAN
    if name in ("accuracy", "pixel_accuracy"):
        return float((p == t).mean())
    if classes is None and name != "f1":
        wanted = [1]
        if not (p == 1).any() and not (t == 1).any():
            return 1.0
    else:
        wanted = sorted(set(p.tolist()) | set(t.tolist()))
    values = []
    for k in wanted:
        both, either = ((p == k) & (t == k)).sum(), ((p == k) | (t == k)).sum()
        values.append(both / either if name == "iou" else 2 * both / (both + either))
    return float(np.mean(values))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 6),
    shape=st.sampled_from([(), (4, 3)]),
    classes=st.sampled_from([None, 3, 7]),
    kinds=st.integers(1, 3),
    missing=st.sampled_from([0.0, 0.3, 0.9]),
    cut=st.integers(0, 6),
)
def test_class_metrics_equal_numpy_in_any_batching(
    seed: int,
    batch: int,
    shape: tuple[int, ...],
    classes: int | None,
    kinds: int,
    missing: float,
    cut: int,
) -> None:
    g = torch.Generator().manual_seed(seed)
    output = torch.randn(batch, classes or 1, *shape, generator=g)
    target = torch.randint(min(kinds, classes or 2), (batch, *shape), generator=g)
    target[torch.rand(target.shape, generator=g) < missing] = -1
    predicted = (output.squeeze(1) > 0).long() if classes is None else output.argmax(1)
    for build in (iou, dice, pixel_accuracy, accuracy, f1):
        metric = build(classes)
        expected = by_numpy(metric.name, predicted.numpy(), target.numpy(), classes)
        whole = score(metric, output, target)
        assert whole == pytest.approx(expected, abs=1e-12, nan_ok=True)
        assert score(metric, output, target, (cut,)) == pytest.approx(whole, abs=0, nan_ok=True)


def test_they_agree_with_torchmetrics_where_every_class_is_present() -> None:
    g = torch.Generator().manual_seed(3)
    output, target = torch.randn(6, 1, 8, 8, generator=g), torch.randint(-1, 2, (6, 8, 8), generator=g)
    logits, classes = torch.randn(6, 4, 8, 8, generator=g), torch.randint(-1, 4, (6, 8, 8), generator=g)
    pairs = [
        (iou(), tm.BinaryJaccardIndex(ignore_index=-1)),
        (dice(), tm.BinaryF1Score(ignore_index=-1)),
        (pixel_accuracy(), tm.BinaryAccuracy(ignore_index=-1)),
        (iou(4), tm.MulticlassJaccardIndex(4, ignore_index=-1)),
        (f1(4), tm.MulticlassF1Score(4, average="macro", ignore_index=-1)),
        (accuracy(4), tm.MulticlassAccuracy(4, average="micro", ignore_index=-1)),
    ]
    for ours, theirs in pairs:
        if ours.make().num_classes == 2:
            expected, found = theirs(output.squeeze(1), target), score(ours, output, target)
        else:
            expected, found = theirs(logits, classes), score(ours, logits, classes)
        assert found == pytest.approx(expected.item(), abs=1e-6), theirs


def test_a_split_without_foreground_is_defined() -> None:
    background = torch.zeros(2, 4, 4, dtype=torch.int64)
    right, wrong = torch.full((2, 1, 4, 4), -1.0), torch.ones(2, 1, 4, 4)
    for metric in (iou(), dice(), pixel_accuracy(), f1()):
        assert score(metric, right, background) == 1
        assert score(metric, wrong, background) == 0


def test_without_labels_a_score_is_nan() -> None:
    for metric in ALL:
        channels = 3 if metric.make().num_classes == 3 else 1
        nothing = torch.full((2, 4, 4), -1)
        assert math.isnan(score(metric, torch.randn(2, channels, 4, 4), nothing)), metric
    for metric in (box_iou(), box_l2()):
        assert math.isnan(score(metric, torch.rand(2, 4), torch.full((2, 4), NAN)))


def test_one_logit_may_come_without_a_channel() -> None:
    target = torch.tensor([1, 0, 1])
    assert score(accuracy(), torch.tensor([2.0, 1.0, -1.0]), target) == pytest.approx(1 / 3)


def boxes_by_numpy(output: NDArray[np.float32], target: NDArray[np.float32]) -> tuple[float, float]:
    overlaps, distances = [], []
    for p, t in zip(output.tolist(), target.tolist(), strict=True):
        if any(math.isnan(v) for v in t):
            continue
        width, height = min(p[2], t[2]) - max(p[0], t[0]), min(p[3], t[3]) - max(p[1], t[1])
        both = max(width, 0) * max(height, 0)
        area = sum(max(b[2] - b[0], 0) * max(b[3] - b[1], 0) for b in (p, t))
        overlaps.append(both / (area - both) if area - both > 0 else 0)
        distances.append(math.dist(p, t))
    return (float(np.mean(overlaps)), float(np.mean(distances))) if overlaps else (NAN, NAN)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 8),
    missing=st.sampled_from([0.0, 0.5]),
    cuts=st.tuples(st.integers(0, 4), st.integers(4, 8)),
)
def test_box_metrics_equal_numpy_in_any_batching(
    seed: int, batch: int, missing: float, cuts: tuple[int, int]
) -> None:
    g = torch.Generator().manual_seed(seed)
    output = torch.rand(batch, 4, generator=g)  # half of them end before they start, in one direction or both
    low = torch.rand(batch, 2, generator=g) * 0.5
    target = torch.cat([low, low + 0.1 + torch.rand(batch, 2, generator=g) * 0.4], 1)
    target[torch.rand(batch, generator=g) < missing, seed % 4] = NAN
    expected = boxes_by_numpy(output.numpy(), target.numpy())
    for metric, value in zip((box_iou(), box_l2()), expected, strict=True):
        whole = score(metric, output, target)
        assert whole == pytest.approx(value, abs=1e-5, nan_ok=True)
        assert score(metric, output, target, cuts) == pytest.approx(whole, abs=0, nan_ok=True)


def test_boxes_by_hand() -> None:
    target = torch.tensor([[0.0, 0.0, 0.5, 0.5]] * 4)
    output = torch.tensor([[0.0, 0, 0.5, 0.5], [0.25, 0, 0.75, 0.5], [0.5, 0.5, 0, 0], [0.6, 0.6, 0.9, 0.9]])
    expected = [1, 1 / 3, 0, 0]
    for row, value in enumerate(expected):
        assert score(box_iou(), output[row : row + 1], target[:1]) == pytest.approx(value)
    assert score(box_iou(), output, target) == pytest.approx(sum(expected) / 4)
    assert score(box_l2(), output[1:2], target[:1]) == pytest.approx(math.sqrt(0.125))
    flat = torch.tensor([[0.3, 0.3, 0.3, 0.3]])
    assert score(box_iou(), flat, flat) == 0


def test_a_diverged_prediction_is_not_hidden() -> None:
    output, target = torch.tensor([[NAN] * 4, [0.0, 0, 1, 1]]), torch.tensor([[0.0, 0, 1, 1]] * 2)
    assert math.isnan(score(box_iou(), output, target))
    assert math.isnan(score(box_l2(), output, target))


def test_names_directions_and_units() -> None:
    found = [iou(), dice(), pixel_accuracy(), accuracy(), f1(), box_iou(), box_l2()]
    assert [m.name for m in found] == ["iou", "dice", "pixel_accuracy", "accuracy", "f1", "box_iou", "box_l2"]
    assert [m.higher_is_better for m in found] == [True] * 6 + [False]
    assert {m.unit for m in found} == {"1"}


@pytest.mark.parametrize("metric", [*ALL, box_iou(), box_l2()], ids=lambda m: m.name)
def test_accumulators_are_fresh_reset_and_pickle(metric: Metric) -> None:
    boxes = metric.name.startswith("box")
    first = metric.make()
    channels = 4 if boxes else (3 if first.num_classes == 3 else 1)
    output = torch.rand(3, channels)
    target = torch.tensor([[0.1, 0.1, 0.9, 0.9]] * 3) if boxes else torch.tensor([0, 1, 1])
    first.update(output, target)
    second = pickle.loads(pickle.dumps(metric)).make()
    second.update(output, target)
    assert first.compute() == second.compute()
    second.reset()
    second.update(output[:1], target[:1])
    assert float(second.compute()) == score(metric, output[:1], target[:1])


@pytest.mark.parametrize("metrics", [(box_iou(), box_l2()), tuple(ALL[:5])], ids=["boxes", "classes"])
def test_a_collection_may_share_their_state(metrics: tuple[Metric, ...]) -> None:
    """torchmetrics joins metrics whose states are equal after one batch, also where that had no label."""
    if metrics[0].name == "box_iou":
        output, target = torch.rand(4, 4), torch.tensor([[NAN] * 4] * 2 + [[0.1, 0.2, 0.6, 0.9]] * 2)
    else:
        output, target = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([-1, -1, 1, 1])
    collection = MetricCollection({metric.name: metric.make() for metric in metrics})
    for part in zip(output.tensor_split([2]), target.tensor_split([2]), strict=True):
        collection.update(*part)
    found = {name: float(value) for name, value in collection.compute().items()}
    assert found == {metric.name: pytest.approx(score(metric, output, target)) for metric in metrics}
