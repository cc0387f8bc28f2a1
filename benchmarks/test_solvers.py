"""Weights from a Gram matrix: mtlbench's solvers beside generic ones and a peer's.

Run: python -m pytest benchmarks/test_solvers.py --benchmark-enable --benchmark-columns=median,iqr,rounds

The matrices are of conflicting gradients with unequal lengths and rotate from call to call, so that a warm
start flatters nobody. Speed is to be read beside exactness: `excess` in the JSON (--benchmark-json) is the
relative amount by which the squared length exceeds the optimum, in the median over the matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchjd.aggregation import MGDAWeighting

from mtlbench.solvers import min_norm_point, min_norm_point_cvxpy

quadprog = pytest.importorskip("quadprog", reason="quadprog is compared with and not installed")

Array = NDArray[np.float64]


def conflicting(count: int, number: int = 50) -> list[Array]:
    """Gram matrices of a low-rank common part plus noise, with log-normal lengths."""
    rng = np.random.default_rng(count)
    grams = []
    for _ in range(number):
        jacobian = rng.normal(size=(count, 3)) @ rng.normal(size=(3, 300)) + rng.normal(size=(count, 300))
        jacobian *= np.exp(rng.normal(size=(count, 1)))
        grams.append(jacobian @ jacobian.T)
    return grams


def with_quadprog(gram: Array) -> Array:
    count = len(gram)
    constraints = np.concatenate([np.ones((count, 1)), np.eye(count)], axis=1)
    bounds = np.zeros(count + 1)
    bounds[0] = 1
    weights: Array = quadprog.solve_qp(gram / gram.trace(), np.zeros(count), constraints, bounds, 1)[0]
    return weights


def with_torchjd(gram: Array) -> Array:
    weights: Array = MGDAWeighting()(torch.from_numpy(gram)).numpy()
    return weights


SOLVERS = {
    "mtlbench": min_norm_point,
    "quadprog": with_quadprog,
    "cvxpy": min_norm_point_cvxpy,
    "torchjd": with_torchjd,
}


@pytest.mark.parametrize("count", [2, 3, 5, 10, 40])
@pytest.mark.parametrize("solver", SOLVERS)
def test_min_norm_point(benchmark, solver: str, count: int) -> None:
    solve: Callable[[Array], Array] = SOLVERS[solver]
    grams = conflicting(count)
    best = [w @ g @ w for g in grams for w in [min_norm_point(g)]]
    found = [w @ g @ w for g in grams for w in [solve(g)]]
    benchmark.group = f"min-norm point, T={count}"
    benchmark.extra_info["excess"] = float(np.median(np.array(found) / np.array(best) - 1))
    rotation = cycle(grams)
    benchmark.pedantic(solve, setup=lambda: ((next(rotation),), {}), rounds=300, warmup_rounds=20)
