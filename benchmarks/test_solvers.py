"""Weights from a Gram matrix: mtlbench's solvers beside generic ones and a peer's.

Run: python -m pytest benchmarks/test_solvers.py --benchmark-enable --benchmark-columns=median,iqr,rounds

The matrices are of conflicting gradients with unequal lengths and rotate from call to call, so that a warm
start flatters nobody. Speed is to be read beside exactness: `excess` in the JSON (--benchmark-json) is the
relative amount by which the squared length exceeds the optimum, in the median over the matrices.

`test_gram_method` compares whole methods with TorchJD's: from a Gram matrix as a tensor to weights as a
tensor (its NashMTL and ConFIG take the gradients; they get a [T, T] root of the matrix, the cheapest there
is). Both take turns, five matrices each; `ratio` is the median of theirs over ours, and `difference` by how
much the directions of the two updates differ, 0 to 2. What TorchJD lacks a solver for is skipped:
pip install ecos qpsolvers quadprog.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import cycle

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchjd import aggregation as peer
from torchjd.aggregation import MGDAWeighting

from mtlbench.contracts import Weighting
from mtlbench.solvers import min_norm_point, min_norm_point_cvxpy
from mtlbench.testing import tiny_tasks
from mtlbench_zoo.weightings.aligned import AlignedMTL
from mtlbench_zoo.weightings.cagrad import CAGrad
from mtlbench_zoo.weightings.config import ConFIG
from mtlbench_zoo.weightings.dualproj import DualProj
from mtlbench_zoo.weightings.fairgrad import FairGrad
from mtlbench_zoo.weightings.krum import Krum
from mtlbench_zoo.weightings.mgda import MGDA
from mtlbench_zoo.weightings.nash import NashMTL
from mtlbench_zoo.weightings.upgrad import UPGrad

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


METHODS: dict[str, tuple[Callable[[int], Weighting], Callable[[int], Callable[[Tensor], Tensor]]]] = {
    "mgda": (lambda count: MGDA(), lambda count: peer.MGDAWeighting()),
    "cagrad": (lambda count: CAGrad(0.4, 0), lambda count: peer.CAGradWeighting(0.4)),
    "nash": (lambda count: NashMTL(), lambda count: peer.NashMTL(count)),
    "fairgrad": (lambda count: FairGrad(), lambda count: peer.FairGradWeighting(1.0)),
    "upgrad": (lambda count: UPGrad(), lambda count: peer.UPGradWeighting()),
    "dualproj": (lambda count: DualProj(), lambda count: peer.DualProjWeighting()),
    "aligned": (lambda count: AlignedMTL(), lambda count: peer.AlignedMTLWeighting()),
    "config": (lambda count: ConFIG(), lambda count: peer.ConFIG()),
    "krum": (lambda count: Krum(tiny_tasks(count)), lambda count: peer.KrumWeighting(0)),
}
OF_GRADIENTS = {"nash", "config"}
"""Methods whose peer takes gradients and returns the update."""


@pytest.mark.parametrize("count", [2, 3, 5, 10])
@pytest.mark.parametrize("method", METHODS)
def test_gram_method(benchmark, method: str, count: int) -> None:
    if method == "krum" and count == 2:
        pytest.skip("the peer's Krum needs three tasks")
    ours, theirs = METHODS[method][0](count), None
    try:
        theirs = METHODS[method][1](count)
    except ImportError as error:
        pytest.skip(f"TorchJD's {method} is not to be had: {str(error).splitlines()[0]}")
    grams = [torch.from_numpy(gram) for gram in conflicting(count)]
    roots = [torch.linalg.cholesky(gram) for gram in grams]
    losses = torch.ones(count, dtype=torch.float64)
    inputs = roots if method in OF_GRADIENTS else grams
    times: tuple[list[float], list[float]] = ([], [])
    rotation = cycle(range(len(grams)))

    def turn() -> None:
        block = [next(rotation) for _ in range(5)]
        begin = time.perf_counter()
        for index in block:
            ours(grams[index], losses)
        middle = time.perf_counter()
        for index in block:
            theirs(inputs[index])
        end = time.perf_counter()
        times[0].append((middle - begin) / len(block))
        times[1].append((end - middle) / len(block))

    def difference(index: int) -> float:
        answer = theirs(inputs[index])
        updates = [ours(grams[index], losses) @ roots[index], answer]
        if method not in OF_GRADIENTS:
            updates[1] = answer @ roots[index]
        first, second = (update / update.norm() for update in updates)
        return float((first - second).norm())

    benchmark.group = f"Gram methods, T={count}"
    benchmark.pedantic(turn, rounds=20, warmup_rounds=2)
    ratio = statistics.median(b / a for a, b in zip(times[0][2:], times[1][2:], strict=True))
    apart = statistics.median(difference(index) for index in range(10))
    benchmark.extra_info["ratio"], benchmark.extra_info["difference"] = round(ratio, 2), apart
    first, second = (statistics.median(found[2:]) * 1e6 for found in times)
    print(f"{method:9} T={count:<3} {first:8.0f} us, TorchJD {second:9.0f} us, {ratio:7.1f} x"
          f"  difference {apart:.1e}")  # fmt: skip
