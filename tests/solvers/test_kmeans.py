"""k-means on a line against every partition."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlbench.solvers.kmeans import kmeans_1d


def spread(values: np.ndarray, labels) -> float:
    parts = [values[np.asarray(labels) == label] for label in set(labels)]
    return sum(((part - part.mean()) ** 2).sum() for part in parts)


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=6), st.integers(1, 4))
def test_no_partition_is_better(values, groups) -> None:
    numbers = np.array(values)
    labels = kmeans_1d(values, groups)
    best = min(spread(numbers, p) for p in product(range(groups), repeat=len(numbers)))
    assert spread(numbers, labels) == pytest.approx(best, rel=1e-9, abs=1e-9)
    assert sorted(set(labels)) == list(range(min(groups, len(numbers))))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40), st.integers(1, 5), st.randoms())
def test_groups_do_not_depend_on_the_order(values, groups, random) -> None:
    numbers, order = sorted(set(values)), list(range(len(set(values))))
    random.shuffle(order)
    labels = kmeans_1d(numbers, groups)
    assert kmeans_1d([numbers[i] for i in order], groups) == [labels[i] for i in order]


@pytest.mark.parametrize("scale", [1e-300, 1e-20, 1.0, 1e20, 1e300])
def test_scales(scale: float) -> None:
    values = [value * scale for value in (5.0, 1.0, 1.1, 5.2, 9.0)]
    assert kmeans_1d(values, 3) == [1, 0, 0, 1, 2]


def test_labels_rise_with_the_values() -> None:
    assert kmeans_1d([-3.0, 7.0, 0.0], 9) == [0, 2, 1]
    assert kmeans_1d([0.0] * 4, 1) == [0, 0, 0, 0]
    assert kmeans_1d([2.0, 2.0, 2.0, 1e-20], 2) == [1, 1, 1, 0]
