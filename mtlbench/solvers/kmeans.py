"""k-means of numbers, exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def kmeans_1d(values: NDArray[np.float64], groups: int) -> NDArray[np.int64]:
    """Return the group of each of the values ``[T]``, int64 in 0..k-1 in rising order of the group's mean.

    The groups have the least sum of squared distances of values to their group's mean. k is ``groups``, or
    T if that is less; no group is empty. Exact and without random starts: on a line, optimal groups are runs
    of the sorted values, which dynamic programming finds in O(k T^2) (Wang & Song, The R Journal 3/2, 2011).
    Of several optima it takes the one whose last groups begin first.
    """
    count = len(values)
    order = np.argsort(values, kind="stable")
    largest = np.abs(values).max()
    line = values[order] / (largest if largest > 0 else 1.0)
    cost = _spreads(line)
    best = cost[0]
    starts = []
    for group in range(1, min(groups, count)):
        # best[j - 1] + cost[j, i]: values up to j - 1 in the groups before, j to i in this one.
        total = np.full((count, count), np.inf)
        total[group:] = best[group - 1 : -1, None] + cost[group:]
        starts.append(total.argmin(axis=0))
        best = total.min(axis=0)
    labels = np.zeros(count, dtype=np.int64)
    last = count - 1
    for group in range(len(starts), 0, -1):
        begin = starts[group - 1][last]
        labels[order[begin : last + 1]] = group
        last = begin - 1
    return labels


def _spreads(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``[T, T]``: the sum of squared distances to their mean of sorted values i..j; inf for i > j."""
    count = len(line)
    cost = np.full((count, count), np.inf)
    spread, mean = np.zeros(count), np.zeros(count)
    for j, value in enumerate(line):
        sizes = np.arange(j + 1, 0, -1.0)
        distance = value - mean[: j + 1]
        mean[: j + 1] += distance / sizes
        spread[: j + 1] += distance * (value - mean[: j + 1])
        cost[: j + 1, j] = spread[: j + 1]
    return cost
