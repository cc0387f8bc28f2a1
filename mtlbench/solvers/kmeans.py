"""k-means of numbers, exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def kmeans_1d(values: NDArray[np.float64], groups: int) -> NDArray[np.int64]:
    """Return the group of each of the values ``[T]``, int64 in 0..k-1 in rising order of the group's mean.

    The groups have the least sum of squared distances of values to their group's mean. k is ``groups``, or
    T if that is less; no group is empty. Exact and without random starts: on a line, optimal groups are runs
    of the sorted values, which dynamic programming finds in O(k T^2) (Wang & Song, The R Journal 3/2, 2011).
    Of several optima it takes the one whose last groups begin first.
    """
    # Plain floats: there are few values, and arrays of a handful of numbers are slower.
    points: list[float] = values.tolist()
    count = len(points)
    order = sorted(range(count), key=points.__getitem__)
    largest = max(map(abs, points)) or 1.0
    cost = _spreads([points[i] / largest for i in order])
    best = cost[0]
    starts = []
    for group in range(1, min(groups, count)):
        # Values up to j - 1 are in the groups before, j to i in this one.
        found = [
            min(((best[j - 1] + cost[j][i], j) for j in range(group, i + 1)), default=(math.inf, 0))
            for i in range(count)
        ]
        best, begins = [total for total, _ in found], [j for _, j in found]
        starts.append(begins)
    labels = np.zeros(count, dtype=np.int64)
    last = count - 1
    for group in range(len(starts), 0, -1):
        begin = starts[group - 1][last]
        labels[order[begin : last + 1]] = group
        last = begin - 1
    return labels


def _spreads(line: Sequence[float]) -> list[list[float]]:
    """Return ``[T, T]``: the sum of squared distances to their mean of sorted values i..j; inf for i > j."""
    cost = [[math.inf] * len(line) for _ in line]
    for i, row in enumerate(cost):
        spread = mean = 0.0
        for size, value in enumerate(line[i:], 1):
            distance = value - mean
            mean += distance / size
            spread += distance * (value - mean)
            row[i + size - 1] = spread
    return cost
