from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mtlbench.results import Record, compare, summarise

METRICS = {
    "seg": {"iou": ("1", True), "err": ("px", False)},
    "cls": {"acc": ("1", True)},
    "aux": {"mse": ("1", False)},
}


def record(scores: dict[str, dict[str, float | None]], status: str = "ok") -> Record:
    described: dict[str, Any] = {
        task: {
            name: {"unit": unit, "higher_is_better": up, "version": 1, "auxiliary": task == "aux"}
            for name, (unit, up) in metrics.items()
        }
        for task, metrics in METRICS.items()
    }
    tasks = [task for task in METRICS if task in scores]
    return Record(
        {"spec": {"tasks": tasks}, "data": {"metrics": described}, "metrics": scores, "status": status}
    )


def test_delta_is_the_mean_over_tasks_of_the_mean_over_metrics() -> None:
    run = record({"seg": {"iou": 0.55, "err": 9.0}, "cls": {"acc": 0.8}, "aux": {"mse": 1.0}})
    base = {
        "seg": record({"seg": {"iou": 0.5, "err": 10.0}}),
        "cls": record({"cls": {"acc": 1.0}}),
    }
    found = compare(run, base)
    assert [g.percent for g in found.gains[:3]] == pytest.approx([10.0, 10.0, -20.0])
    assert found.delta == pytest.approx((10 - 20) / 2)
    assert found.delta_flat == pytest.approx(0.0)
    assert found.gains[3].why == "no baseline"


@pytest.mark.parametrize(
    ("base", "why"),
    [
        (record({"cls": {"acc": 0.0}}), "the baseline is zero"),
        (record({"cls": {"acc": None}}), "no label in the test split"),
        (record({"cls": {}}, status="diverged"), "the baseline diverged"),
        (None, "no baseline"),
    ],
)
def test_what_is_undefined_is_said_not_divided(base: Record | None, why: str) -> None:
    found = compare(record({"cls": {"acc": 0.5}}), {} if base is None else {"cls": base})
    assert found.delta is None
    assert found.delta_flat is None
    assert found.gains[0].why == why


@given(
    value=st.floats(-1e3, 1e3),
    baseline=st.floats(0.01, 1e3),
    up=st.booleans(),
    sign=st.sampled_from([-1.0, 1.0]),
)
def test_positive_means_better_whatever_direction_and_sign(
    value: float, baseline: float, up: bool, sign: float
) -> None:
    name = "acc" if up else "mse"
    METRICS["x"] = {name: ("1", up)}
    try:
        found = compare(record({"x": {name: value}}), {"x": record({"x": {name: sign * baseline}})})
    finally:
        del METRICS["x"]
    assert found.delta is not None
    better = value > sign * baseline if up else value < sign * baseline
    assert (found.delta > 0) == better or math.isclose(value, sign * baseline, rel_tol=1e-9)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12))
def test_the_interval_is_students(values: list[float]) -> None:
    found = summarise(values)
    assert found.n == len(values)
    assert found.mean == pytest.approx(sum(values) / len(values), abs=1e-9)
    error = stats.sem(values)
    assert found.half_width == pytest.approx(error * stats.t.ppf(0.975, len(values) - 1), abs=1e-9)
    assert summarise(values[::-1]) == found or math.isclose(
        summarise(values[::-1]).half_width or 0, found.half_width or 0
    )


def test_one_seed_has_no_interval() -> None:
    assert summarise([3.0]).half_width is None
