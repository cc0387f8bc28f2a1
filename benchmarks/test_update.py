"""From gradients ``[T, P]`` to the update: Gram matrix, weights and their combination, beside the peers'.

Run: make bench, or python -m pytest benchmarks/test_update.py --benchmark-enable --benchmark-only [--quick]

Ours is what the engine does with the gradients of each task, in lists, the sum written over the first. To
TorchJD's aggregators and LibMTL's methods the gradients are given as one matrix, so that neither pays for
collecting them. LibMTL's Nash-MTL and FairGrad make their update by a second backward pass, of which they are
spared here: their figures are of weights alone.

Everybody has memory of his own. Matrices rotate, and before every call the first row is written anew. What is
compared are calls that come after one of the same contender, as in training one comes after the other; calls
that come after somebody else's, whose code and data fill the caches, have a table of their own.

Another contender does what no method can do without: it reads all gradients, reads them again and writes one.
By how much it is ahead of a peer is what memory allows to be ahead. Methods with a state as long as the
gradients read more, and have no such figure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from memory import Pass
from methods import TORCHJD, UPDATE_GOALS, ours, torchjd
from peers import libmtl
from tables import Tables
from torch import Tensor, nn
from turns import Turns

from mtlbench.contracts import Need
from mtlbench.gradients import Jacobian

COUNTS, WIDTHS = (2, 3, 5, 10, 20), (5, 6)
METHODS = [*TORCHJD, "gradnorm", "sdmgrad", "db-mtl", "moco"]
SPEED = "Gradients to update: times faster than {}"
BOUND = "Gradients to update: times faster than {}, were gradients only read twice and one of them written"
FIRST = "Gradients to update: times faster than {}, each after the other"
MEAN = "mean of T <= 10"
IN_MEAN = [f"T={count}, P=1e{width}" for width in WIDTHS for count in COUNTS if count <= 10]


ROTATING = 2
"""Matrices that each contender has."""


def conflicting(count: int, width: int) -> list[Tensor]:
    """Gradients with a low-rank common part, noise and log-normal lengths, float32."""
    generator = torch.Generator().manual_seed(count)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    made = []
    for _ in range(ROTATING):
        jacobian = (normal(count, 3) @ normal(3, width)).add_(normal(count, width))
        made.append(jacobian.mul_(normal(count, 1).exp() / 1000))
    return made


class Problem:
    """Gradients of ``count`` tasks, and each contender's way to an update."""

    def __init__(self, method: str, count: int, width: int, tables: Tables) -> None:
        jacobians = conflicting(count, width)
        self.first = [jacobian[0].clone() for jacobian in jacobians]
        self.places: dict[str, list[Tensor]] = {}
        self.steps: dict[str, Callable[[], Any]] = {}
        self.current: dict[str, int] = {}
        self._ours(method, count, jacobians)
        peer = torchjd(method, count, of_gradients=True)
        if not isinstance(peer, str):
            matrices = self._matrices("TorchJD", jacobians)
            self.steps["TorchJD"] = lambda: peer(matrices[self.current["TorchJD"]])
        elif method in TORCHJD:
            tables.skip(peer)
        if method in libmtl.NAMES:
            try:
                self._libmtl(method, count, width, jacobians)
            except libmtl.PeerMissingError as error:
                tables.skip(str(error))

    def _matrices(self, name: str, jacobians: list[Tensor]) -> list[Tensor]:
        """Return gradients as matrices, in memory that ``name`` alone reads."""
        matrices = [jacobian.clone() for jacobian in jacobians]
        self.places[name], self.current[name] = [matrix[0] for matrix in matrices], 0
        return matrices

    def _ours(self, method: str, count: int, jacobians: list[Tensor]) -> None:
        weighting, losses = ours(method, count), torch.ones(count, dtype=torch.float64)
        if weighting.needs is Need.JACOBIAN:
            matrices = self._matrices("ours", jacobians)
            self.steps["ours"] = lambda: weighting(matrices[self.current["ours"]], losses)
            return
        # every gradient in memory of its own, as autograd gives them
        tasks = [[[row.clone()] for row in jacobian] for jacobian in jacobians]
        self.places["ours"], self.current["ours"] = [rows[0][0] for rows in tasks], 0
        cross, diagonal = weighting.needs is Need.CROSS, "diagonal" in weighting.properties

        def step() -> list[Tensor | None]:
            current = self.current["ours"]
            own, other = Jacobian(tasks[current]), Jacobian(tasks[current - 1]) if cross else None
            products = own.gram(diagonal=diagonal) if other is None else own.products(other)
            return own.combine(weighting(products, losses).tolist())

        self.steps["ours"] = step
        self._memory(jacobians, cross)

    def _memory(self, jacobians: list[Tensor], cross: bool) -> None:
        """Take the turn after ours: then ours comes after a peer, as it would without."""
        matrices = self._matrices("memory", jacobians)
        passes = [
            Pass(matrix, matrices[number - 1][: None if cross else 0])
            for number, matrix in enumerate(matrices)
        ]
        self.steps["memory"] = lambda: passes[self.current["memory"]]()

    def _libmtl(self, method: str, count: int, width: int, jacobians: list[Tensor]) -> None:
        parameter = nn.Parameter(torch.zeros(width))
        parameter.grad = torch.zeros(width)
        matrices = self._matrices("LibMTL", jacobians)
        current = iter(lambda: matrices[self.current["LibMTL"]], None)
        peer = libmtl.weighting(method, [parameter], count, current)
        losses = torch.ones(3, count) if method == "sdmgrad" else torch.ones(count, requires_grad=True)

        def step() -> Tensor | None:
            peer.backward(losses, **libmtl.DEFAULTS)
            return parameter.grad

        self.steps["LibMTL"] = step

    def prepare(self, name: str) -> None:
        """Take the contender's next gradients, and write their first row anew."""
        self.current[name] = (self.current[name] + 1) % ROTATING
        self.places[name][self.current[name]].copy_(self.first[self.current[name]])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore")  # the peers' own
def test_update(benchmark: Any, tables: Tables, method: str, count: int, width: int) -> None:
    if tables.quick and (count not in (3, 10) or width != 5):
        pytest.skip("not in a quick run")
    problem = Problem(method, count, 10**width, tables)
    peers = [name for name in problem.steps if name not in ("ours", "memory")]
    if not peers:
        pytest.skip("no peer to compare with")
    for step in problem.steps.values():
        step()  # so that no round counts what is compiled
    benchmark.group = f"gradients to update, T={count}, P=1e{width}"
    turns = Turns(problem.steps, again=True, prepare=problem.prepare).run(benchmark, 2)
    column = f"T={count}, P=1e{width}"
    for peer in peers:
        speed, bound, first = SPEED.format(peer), BOUND.format(peer), FIRST.format(peer)
        tables.ratio(speed, method, column, turns.ahead("ours", peer))
        tables.ratio(first, method, column, turns.ahead("ours", peer, first=True), judged=False)
        tables.mean(first, method, IN_MEAN, MEAN)
        allowed = mean = None
        if "memory" in problem.steps:
            allowed = turns.ahead("memory", peer)
            tables.ratio(bound, method, column, allowed, judged=False)
            mean = tables.mean(bound, method, IN_MEAN, MEAN)
        goal = UPDATE_GOALS[peer].get(method)
        tables.mean(speed, method, IN_MEAN, MEAN, goal, mean)
        if goal is not None and column == "T=20, P=1e6":
            tables.goal(f"{speed}, {method}, {column}", 1, turns.ahead("ours", peer), allowed=allowed)
