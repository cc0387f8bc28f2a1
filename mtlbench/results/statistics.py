"""What may be said about several methods over the same seeds.

Seeds are paired: methods that share a seed share its data order, initial encoder and baselines, so they are
compared by their differences (paired t). Many comparisons in one table are corrected (Holm). Ranks come
second, since they depend on who else is in the table; a critical-difference diagram needs datasets as its
blocks, never seeds (Demšar, JMLR 2006).
"""

from __future__ import annotations

import gc
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
    from statsmodels.stats.multitest import multipletests

    order = sorted(raw)
    if not order:
        return {}
    gc.freeze()  # it collects garbage at every call, which among thousands of records takes a second
    try:
        found = multipletests([raw[i] for i in order], method="holm")[1]
    finally:
        gc.unfreeze()
    return dict(zip(order, found.tolist(), strict=True))


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
    """Methods over datasets: mean rank of each, p of Friedman's test, and Nemenyi's p for every pair."""

    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    ranks: tuple[float, ...]
    friedman: float
    nemenyi: np.ndarray


def ranking(scores: Mapping[str, Mapping[str, float]]) -> Ranking | None:
    """Rank methods over datasets (``scores[method][dataset]``, higher is better).

    Only datasets that all methods have are counted; None where these are fewer than `BLOCKS`, or the methods
    fewer than three.
    """
    methods = sorted(scores)
    datasets = sorted(set.intersection(*(set(scores[m]) for m in methods))) if methods else []
    if len(datasets) < BLOCKS or len(methods) < 3:
        return None
    from scikit_posthocs import posthoc_nemenyi_friedman
    from scipy.stats import friedmanchisquare

    table = np.array([[scores[m][d] for m in methods] for d in datasets])
    p = posthoc_nemenyi_friedman(table).to_numpy()
    ranks = mean_ranks(table.T, [True] * len(datasets))
    return Ranking(
        tuple(methods), tuple(datasets), tuple(ranks), float(friedmanchisquare(*table.T).pvalue), p
    )
