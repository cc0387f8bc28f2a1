"""The two-objective problem of benchmarks/toy.py: methods with a guarantee reach the Pareto front."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from mtlbench.registry import Registry
from mtlbench.testing import tiny_tasks


@pytest.fixture(scope="module")
def toy() -> Any:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "toy.py"
    spec = importlib.util.spec_from_file_location("toy", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reached(toy: Any, method: str) -> list[bool]:
    choice = Registry().choose("weightings", method)
    ends = [toy.descend(choice.build(tasks=tiny_tasks(2)), start)[-1] for start in toy.STARTS]
    return [toy.stationarity(end) < toy.REACHED for end in ends]


@pytest.mark.parametrize("method", ["mgda", "pcgrad", "nash", "fairgrad", "upgrad"])
def test_a_method_with_a_guarantee_reaches_the_front_from_every_start(toy: Any, method: str) -> None:
    assert all(reached(toy, method))


def test_equal_weighting_does_not_in_that_time(toy: Any) -> None:
    assert not all(reached(toy, "ew"))


def test_the_gradients_are_those_of_the_losses(toy: Any) -> None:
    import numpy as np

    for point in ([-8.5, 7.5], [9.0, 9.0], [10.0, -8.0], [0.3, -0.2], [-3.0, 2.0]):
        x = np.array(point)
        _, gradients = toy.evaluate(x)
        for axis in range(2):
            h = np.eye(2)[axis] * 1e-6
            slope = (toy.evaluate(x + h)[0] - toy.evaluate(x - h)[0]) / 2e-6
            assert gradients[:, axis] == pytest.approx(slope, rel=1e-4, abs=1e-6)
