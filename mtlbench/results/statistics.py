"""What may be said about several methods over the same seeds.

Seeds are paired: methods that share a seed share its data order, initial encoder and baselines, so they are
compared by their differences (paired t). Many comparisons in one table are corrected (Holm). Ranks come
second, since they depend on who else is in the table; a critical-difference diagram needs datasets as its
blocks, never seeds (Demšar, JMLR 2006).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05
"""Where a difference is called one: Holm-corrected p below it."""

BLOCKS = 8
"""Fewer datasets than this say too little about ranks for a critical-difference diagram."""


@dataclass(frozen=True)
class Versus:
    """One method against another over the seeds that both have.

    difference: mean of the paired differences. n: seeds in common. p: Holm-corrected two-sided p of the
    paired t test, None where fewer than two seeds are shared.
    """

    difference: float
    n: int
    p: float | None

    @property
    def different(self) -> bool | None:
        """Whether a difference was shown; None where there were too few seeds to tell."""
        return None if self.p is None else self.p < LEVEL


def versus(scores: Sequence[Mapping[int, float]], reference: int) -> list[Versus | None]:
    """Compare every method with the one at index ``reference``; None for itself and where no seed is shared.

    scores: for each method, its score by seed. The p values of one call are corrected together.
    """
    from scipy.stats import ttest_1samp

    base = scores[reference]
    differences: dict[int, list[float]] = {}
    for index, found in enumerate(scores):
        shared = sorted(found.keys() & base.keys())
        if index != reference and shared:
            differences[index] = [found[seed] - base[seed] for seed in shared]
    by_size: dict[int, list[int]] = {}
    for index, values in differences.items():
        by_size.setdefault(len(values), []).append(index)
    raw: dict[int, float] = {}
    for size, members in sorted(by_size.items()):
        if size < 2:
            continue
        table = np.array([differences[index] for index in members])
        # A t statistic has no unit: in units of the largest difference, squares neither under- nor overflow.
        largest = np.abs(table).max(axis=1, keepdims=True)
        table = np.divide(table, largest, out=np.zeros_like(table), where=largest > 0)
        # One difference at every seed leaves no spread to compare it with: then it is zero, or beyond doubt.
        flat = np.ptp(table, axis=1) <= 1e-12
        with np.errstate(invalid="ignore", divide="ignore"):
            p = np.where(flat, np.where(table[:, 0] == 0, 1.0, 0.0), 1.0)
            if not flat.all():
                p[~flat] = ttest_1samp(table[~flat], 0.0, axis=1).pvalue
        raw.update(zip(members, p.tolist(), strict=True))
    corrected = _holm(raw)
    return [
        Versus(float(np.mean(differences[i])), len(differences[i]), corrected.get(i))
        if i in differences
        else None
        for i in range(len(scores))
    ]


def _holm(raw: Mapping[int, float]) -> dict[int, float]:
    """Correct p values for their number (Holm, Scand. J. Statistics 1979): step down, never decreasing.

    statsmodels has it, at the price of importing pandas and of a collection of garbage at every call; a test
    compares the two.
    """
    order = sorted(raw, key=lambda i: raw[i])
    steps = np.array([raw[i] * (len(order) - place) for place, i in enumerate(order)])
    return dict(zip(order, np.minimum(np.maximum.accumulate(steps), 1.0).tolist(), strict=True))


def mean_ranks(table: Sequence[Sequence[float]] | np.ndarray, higher: Sequence[bool]) -> list[float]:
    """Return each method's rank (1 is best, ties share), averaged over the columns.

    table: methods by columns, without gaps. higher: by column, whether more is better.
    """
    from scipy.stats import rankdata

    values = np.asarray(table, dtype=float) * np.where(higher, -1.0, 1.0)
    ranks = rankdata(values, axis=0)
    return [float(rank) for rank in ranks.mean(axis=1)]


@dataclass(frozen=True)
class Ranking:
    """Methods over datasets, the best first.

    ranks: the mean rank of each, 1 is best. friedman: p of Friedman's test that all are alike. nemenyi: p of
    Nemenyi's test for every pair, ``[k, k]``. critical: the critical difference, the gap of mean ranks from
    which Nemenyi's p is below `LEVEL`.
    """

    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    ranks: tuple[float, ...]
    friedman: float
    nemenyi: np.ndarray
    critical: float

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """Return (first, last) place of every largest group of methods that are not told apart.

        Where Friedman's test shows no difference at all, no pair is tested: then all are one group.
        """
        last = len(self.methods) - 1
        if self.friedman >= LEVEL:
            return ((0, last),)
        found: list[tuple[int, int]] = []
        for first in range(last):
            alike = np.flatnonzero(self.nemenyi[first, first + 1 :] >= LEVEL)
            end = first + 1 + int(alike[-1]) if alike.size else first
            if end > first and (not found or end > found[-1][1]):
                found.append((first, end))
        return tuple(found)


def ranking(scores: Mapping[str, Mapping[str, float]]) -> Ranking | None:
    """Rank methods over datasets (``scores[method][dataset]``, higher is better).

    Only datasets that all methods have are counted; None where these are fewer than `BLOCKS`, or the methods
    fewer than three.
    """
    datasets = sorted(set.intersection(*map(set, scores.values()))) if scores else []
    if len(datasets) < BLOCKS or len(scores) < 3:
        return None
    from scikit_posthocs import posthoc_nemenyi_friedman
    from scipy.stats import friedmanchisquare, studentized_range

    by_method = {m: [scores[m][d] for d in datasets] for m in sorted(scores)}
    ranks = dict(zip(by_method, mean_ranks([*by_method.values()], [True] * len(datasets)), strict=True))
    methods = sorted(ranks, key=lambda m: (ranks[m], m))
    table = np.array([by_method[m] for m in methods])
    k = len(methods)
    alike = bool((table == table[0]).all())  # then there is no spread for the test to work with
    return Ranking(
        tuple(methods),
        tuple(datasets),
        tuple(ranks[m] for m in methods),
        1.0 if alike else float(friedmanchisquare(*table).pvalue),
        posthoc_nemenyi_friedman(table.T).to_numpy(),
        float(studentized_range.isf(LEVEL, k, np.inf)) * math.sqrt(k * (k + 1) / (12 * len(datasets))),
    )
