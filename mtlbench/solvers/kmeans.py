"""k-means of numbers, exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence


def kmeans_1d(values: Sequence[float], groups: int) -> list[int]:
    """Return the group of each of the T values, 0..k-1 in rising order of the group's mean.

    The groups have the least sum of squared distances of values to their group's mean. k is ``groups``, or
    T if that is less; no group is empty. Exact and without random starts: on a line, optimal groups are runs
    of the sorted values, which dynamic programming finds in O(k T^2) (Wang & Song, The R Journal 3/2, 2011).
    Of several optima it takes the one whose last groups begin first.
    """
    # Plain floats: of the few values that there are, arrays and compiled loops are slower to call.
    count = len(values)
    order = sorted(range(count), key=values.__getitem__)
    largest = max(map(abs, values), default=0.0) or 1.0
    line = [values[i] / largest for i in order]
    # best[n]: the least cost of the first n sorted values in the groups so far, the last begins at begins[n].
    best = [0.0] + [math.inf] * count
    starts = []
    for group in range(min(groups, count)):
        before, best, begins = best, [math.inf] * (count + 1), [0] * (count + 1)
        for begin in range(group, count):
            cost, mean = before[begin], 0.0
            for end in range(begin, count):
                distance = line[end] - mean
                mean += distance / (end - begin + 1)
                cost += distance * (line[end] - mean)
                if cost < best[end + 1]:
                    best[end + 1], begins[end + 1] = cost, begin
        starts.append(begins)
    labels = [0] * count
    end = count
    for group, begins in reversed(list(enumerate(starts))):
        for i in order[begins[end] : end]:
            labels[i] = group
        end = begins[end]
    return labels
