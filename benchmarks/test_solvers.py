"""Weights from a Gram matrix: whole methods beside the peers', and how exact they are.

Run: make bench, or python -m pytest benchmarks/test_solvers.py --benchmark-enable --benchmark-only [--quick]

The matrices are of conflicting gradients with unequal lengths and rotate from call to call, so that a warm
start flatters nobody. All take turns; a turn is one call that is not timed and five that are.

Ours gives weights for a Gram matrix, as a tensor, and so does TorchJD's (but for Nash-MTL and ConFIG, which
take gradients: they get a [T, T] root of the matrix, the cheapest there is). LibMTL's has no such function:
it gets the root too, as float32, and puts an update of T numbers into a gradient; its Nash-MTL and FairGrad
are spared the second backward pass that they do in training.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import quadprog
import torch
from methods import OF_GRADIENTS, SOLVER_GOALS, TORCHJD, ours, torchjd
from numpy.typing import NDArray
from peers import libmtl
from tables import Tables
from torch import nn
from turns import Turns

from mtlbench.solvers import min_norm_point, min_norm_point_cvxpy

Array = NDArray[np.float64]

COUNTS = (2, 3, 5, 10, 20, 40)
IN_MEAN = [f"T={count}" for count in COUNTS if count <= 10]
MEAN = "mean of T <= 10"
SPEED = "Weights from a Gram matrix: times faster than {}"
SECONDS = "Weights from a Gram matrix: microseconds of ours"
EXCESS = "How far above the optimum, median / largest of 50 matrices, in %"


def conflicting(count: int, number: int = 50) -> list[Array]:
    """Gram matrices of a low-rank common part plus noise, with log-normal lengths."""
    rng = np.random.default_rng(count)
    grams = []
    for _ in range(number):
        jacobian = rng.normal(size=(count, 3)) @ rng.normal(size=(3, 300)) + rng.normal(size=(count, 300))
        jacobian *= np.exp(rng.normal(size=(count, 1)))
        grams.append(jacobian @ jacobian.T)
    return grams


class Problem:
    """Gram matrices of ``count`` tasks, and each contender's way to weights or an update."""

    def __init__(self, method: str, count: int, tables: Tables) -> None:
        self.grams = [torch.from_numpy(gram) for gram in conflicting(count)]
        self.roots = [torch.linalg.cholesky(gram) for gram in self.grams]
        made, losses = ours(method, count), torch.ones(count, dtype=torch.float64)
        self.contenders: dict[str, Callable[[int], Any]] = {"ours": lambda i: made(self.grams[i], losses)}
        peer = torchjd(method, count, of_gradients=False)
        if isinstance(peer, str):
            tables.skip(peer)
        else:
            given = self.roots if method in OF_GRADIENTS else self.grams
            self.contenders["TorchJD"] = lambda i: peer(given[i])
        if method in libmtl.NAMES:
            try:
                self.contenders["LibMTL"] = self._libmtl(method, count)
            except libmtl.PeerMissingError as error:
                tables.skip(str(error))

    def _libmtl(self, method: str, count: int) -> Callable[[int], Any]:
        parameter, current = nn.Parameter(torch.zeros(count)), [0]
        parameter.grad = torch.zeros(count)
        roots = [root.float() for root in self.roots]
        peer = libmtl.weighting(method, [parameter], count, iter(lambda: roots[current[0]], None))
        losses = torch.ones(count, requires_grad=True)

        def call(index: int) -> Any:
            current[0] = index
            return peer.backward(losses, **libmtl.DEFAULTS)

        return call

    def steps(self) -> dict[str, Callable[[], Any]]:
        """Return the contenders on matrices that rotate."""

        def rotating(call: Callable[[int], Any]) -> Callable[[], Any]:
            indices = cycle(range(len(self.grams)))
            return lambda: call(next(indices))

        return {name: rotating(call) for name, call in self.contenders.items()}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("method", TORCHJD)
@pytest.mark.filterwarnings("ignore")  # the peers' own, such as of a solver that is not sure of its answer
def test_weights(benchmark: Any, tables: Tables, method: str, count: int) -> None:
    if tables.quick and count not in (3, 10):
        pytest.skip("not in a quick run")
    problem = Problem(method, count, tables)
    benchmark.group = f"weights from a Gram matrix, T={count}"
    turns = Turns(problem.steps(), time.process_time, 5, again=True).run(
        benchmark, 0.6 if tables.quick else 2
    )
    tables.cell(SECONDS, method, f"T={count}", f"{turns.seconds('ours') * 1e6:.0f}")
    for peer in turns.steps:
        if peer != "ours":
            tables.ratio(SPEED.format(peer), method, f"T={count}", turns.ahead("ours", peer))
            goal = SOLVER_GOALS[peer].get(method)
            tables.mean(SPEED.format(peer), method, IN_MEAN, MEAN, goal)


def least_square(gram: Array, weights: Array) -> float:
    """What mgda minimises on the simplex."""
    return float(weights @ gram @ weights)


def least_progress(gram: Array, weights: Array, c: float = 0.5) -> float:
    """What cagrad minimises on the simplex; ``weights`` are those of its update, up to a factor for ours."""
    count = len(gram)
    mean = np.full(count, 1 / count)
    return float(mean @ gram @ weights + c * np.sqrt((mean @ gram @ mean) * (weights @ gram @ weights)))


def _on_simplex(method: str, contender: str, answer: Any) -> Array:
    """Return the point of the simplex that an answer was made from."""
    weights = np.asarray(answer, dtype=np.float64).clip(min=0)
    if method == "cagrad" and contender != "LibMTL":  # these answer with 1/T plus a multiple of it
        weights = weights * (1.25 if contender == "ours" else 1) - 1 / len(weights)
    weights = weights.clip(min=0)
    point: Array = weights / weights.sum()
    return point


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("method", ["mgda", "cagrad"])
@pytest.mark.filterwarnings("ignore")
def test_exactness(benchmark: Any, tables: Tables, method: str, count: int) -> None:
    problem = Problem(method, count, tables)
    value = least_square if method == "mgda" else least_progress
    found = {
        name: np.array(
            [value(gram.numpy(), _on_simplex(method, name, call(i))) for i, gram in enumerate(problem.grams)]
        )
        for name, call in problem.contenders.items()
    }
    benchmark.pedantic(lambda: None)
    best = np.minimum.reduce(list(found.values()))
    for name, values in found.items():
        excess = (values - best) / np.abs(best) * 100
        cell = f"{np.median(excess):.2g} / {excess.max():.2g}"
        tables.cell(EXCESS, f"{method}, {name}", f"T={count}", cell)
    assert (found["ours"] <= best + 1e-9 * np.abs(best)).all()


def with_quadprog(gram: Array) -> Array:
    count = len(gram)
    constraints = np.concatenate([np.ones((count, 1)), np.eye(count)], axis=1)
    bounds = np.zeros(count + 1)
    bounds[0] = 1
    weights: Array = quadprog.solve_qp(gram / gram.trace(), np.zeros(count), constraints, bounds, 1)[0]
    return weights


@pytest.mark.parametrize("count", COUNTS)
def test_generic_solvers(benchmark: Any, tables: Tables, count: int) -> None:
    if tables.quick and count not in (3, 10):
        pytest.skip("not in a quick run")
    solvers = {"ours": min_norm_point, "quadprog": with_quadprog, "cvxpy": min_norm_point_cvxpy}
    grams = conflicting(count)

    def rotating(solve: Callable[[Array], Array]) -> Callable[[], Array]:
        rotation = cycle(grams)
        return lambda: solve(next(rotation))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        steps = {name: rotating(solve) for name, solve in solvers.items()}
        turns = Turns(steps, time.process_time, 5, again=True).run(benchmark, 0.6 if tables.quick else 2)
    for name in ("quadprog", "cvxpy"):
        table = "The min-norm point: times faster than a generic solver"
        tables.ratio(table, name, f"T={count}", turns.ahead("ours", name))
        tables.mean(table, name, IN_MEAN, MEAN)
