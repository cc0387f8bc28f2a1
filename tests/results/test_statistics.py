from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from mtlbench.results.statistics import BLOCKS, mean_ranks, ranking, versus


def test_versus_is_a_paired_t_test_with_holm_correction() -> None:
    draw = np.random.default_rng(0)
    scores = [dict(enumerate(draw.normal(i / 2, 1, size=6).tolist())) for i in range(4)]
    found = versus(scores, 1)
    assert found[1] is None
    others = [0, 2, 3]
    # statsmodels' one-sample test of the differences is an independent computation of the same p.
    raw = [DescrStatsW([scores[i][s] - scores[1][s] for s in range(6)]).ttest_mean()[1] for i in others]
    corrected = multipletests(raw, method="holm")[1]
    for i, p in zip(others, corrected, strict=True):
        assert found[i] is not None
        assert found[i].p == pytest.approx(p, rel=1e-10)
        assert found[i].n == 6
        assert found[i].difference == pytest.approx(np.mean([scores[i][s] - scores[1][s] for s in range(6)]))


def test_a_hand_worked_example() -> None:
    # Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t = 2 sqrt(3) with 2 degrees of freedom;
    # p = 1 - t / sqrt(t^2 + 2) = 1 - sqrt(12/14). One comparison, so Holm leaves it.
    found = versus([{0: 0.0, 1: 0.0, 2: 0.0}, {0: 1.0, 1: 2.0, 2: 3.0}], 0)[1]
    assert found is not None
    assert found.p == pytest.approx(1 - (12 / 14) ** 0.5)
    assert found.different is False


def test_only_shared_seeds_count_and_too_few_are_said() -> None:
    found = versus([{0: 1.0, 1: 2.0, 2: 3.0}, {1: 5.0, 2: 6.5, 7: 0.0}, {2: 9.0}, {8: 1.0}], 0)
    assert found[1] is not None
    assert found[1].n == 2
    assert found[1].difference == pytest.approx(3.25)
    assert found[2] is not None
    assert (found[2].n, found[2].p, found[2].different) == (1, None, None)
    assert found[3] is None


def test_differences_without_spread_are_zero_or_beyond_doubt() -> None:
    found = versus([{0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}, {0: 1.5, 1: 2.5}], 0)
    assert found[1] is not None
    assert found[1].p == 1.0
    assert found[2] is not None
    assert found[2].p == 0.0


@example([[0.0, 0.0, 7.7e-294], [0.0, 7.7e-294, 0.0]])
@example([[0.0, 0.0, 5e-324], [0.0, 5e-324, 5e-324]])
@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), min_size=2, max_size=6))
def test_p_lies_in_0_1_and_grows_by_correction(rows: list[list[float]]) -> None:
    scores = [dict(enumerate(row)) for row in rows]
    for index, found in enumerate(versus(scores, 0)):
        if index:
            assert found is not None
            assert 0 <= found.p <= 1
            alone = versus([scores[0], scores[index]], 0)[1]
            assert alone is not None
            assert found.p >= alone.p - 1e-12


def test_mean_ranks_share_ties_and_know_directions() -> None:
    table = [[0.9, 1.0], [0.9, 2.0], [0.1, 0.5]]
    assert mean_ranks(table, [True, False]) == [(1.5 + 2) / 2, (1.5 + 3) / 2, (3 + 1) / 2]


def test_ranking_needs_enough_datasets() -> None:
    scores = {f"m{i}": {f"d{j}": float(i) for j in range(BLOCKS - 1)} for i in range(3)}
    assert ranking(scores) is None
    for found in scores.values():
        found["last"] = 1.0 if found is scores["m0"] else 0.0
    assert ranking(scores) is not None
    assert ranking({"a": scores["m0"], "b": scores["m1"]}) is None


def test_ranking_by_the_formulas_of_demsar() -> None:
    draw = np.random.default_rng(1)
    table = draw.normal(size=(10, 4)) + np.array([0, 0.5, 1, 2])
    scores = {f"m{i}": {f"d{j}": float(table[j, i]) for j in range(10)} for i in range(4)}
    found = ranking(scores)
    assert found is not None
    ranks = np.array([stats.rankdata(-row) for row in table]).mean(axis=0)
    order = np.argsort(ranks)
    assert found.methods == tuple(f"m{i}" for i in order)
    assert found.ranks == pytest.approx(ranks[order])
    # Nemenyi: the studentised range of the rank difference over sqrt(k (k + 1) / (6 N)).
    for i, j in itertools.combinations(range(4), 2):
        q = (found.ranks[j] - found.ranks[i]) / np.sqrt(4 * 5 / (6 * 10)) * np.sqrt(2)
        assert found.nemenyi[i, j] == pytest.approx(stats.studentized_range.sf(q, 4, np.inf), abs=1e-6)
    chi = 12 * 10 / (4 * 5) * (np.sum(ranks**2) - 4 * 25 / 4)
    assert found.friedman == pytest.approx(stats.chi2.sf(chi, 3))
    # Table 5 of the paper: q = 2.569 for four methods at 0.05.
    assert found.critical == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 10)), rel=1e-3)
    alike = {
        (i, j)
        for i, j in itertools.combinations(range(4), 2)
        if found.ranks[j] - found.ranks[i] < found.critical
    }
    assert {(i, j) for a, b in found.groups for i, j in itertools.combinations(range(a, b + 1), 2)} == alike
    assert 0 < len(alike) < 6


def test_without_a_difference_at_all_no_pair_is_told_apart() -> None:
    table = np.random.default_rng(2).normal(size=(8, 3))
    found = ranking({f"m{i}": {f"d{j}": float(table[j, i]) for j in range(8)} for i in range(3)})
    assert found is not None
    assert found.friedman > 0.05
    assert found.groups == ((0, 2),)
