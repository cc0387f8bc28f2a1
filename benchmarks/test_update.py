"""From gradients ``[T, P]`` to the update: Gram matrix, weights and their combination, beside the peers'.

Run: make bench, or python -m pytest benchmarks/test_update.py --benchmark-enable --benchmark-only [--quick]

Ours is what the engine does with the gradients of each task, in lists, the sum written over the first. To
TorchJD's aggregators and LibMTL's methods the gradients are given as one matrix, so that neither pays for
collecting them. LibMTL's Nash-MTL and FairGrad make their update by a second backward pass, of which they are
spared here: their figures are of weights alone.

Matrices rotate, and before every call the first row is written anew for all.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest
import torch
from methods import TORCHJD, UPDATE_GOALS, ours, torchjd
from peers import libmtl
from tables import Tables
from torch import Tensor, nn
from turns import Turns

from mtlbench.contracts import Need
from mtlbench.gradients import combine, cross_gram, gram

COUNTS, WIDTHS = (2, 3, 5, 10, 20), (5, 6)
METHODS = [*TORCHJD, "gradnorm", "sdmgrad", "db-mtl", "moco"]
SPEED = "Gradients to update: times faster than {}"
MEAN = "mean of T <= 10"
IN_MEAN = [f"T={count}, P=1e{width}" for width in WIDTHS for count in COUNTS if count <= 10]


def conflicting(count: int, width: int, number: int) -> list[Tensor]:
    """Gradients with a low-rank common part, noise and log-normal lengths, float32."""
    generator = torch.Generator().manual_seed(count)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    made = []
    for _ in range(number):
        jacobian = (normal(count, 3) @ normal(3, width)).add_(normal(count, width))
        made.append(jacobian.mul_(normal(count, 1).exp() / 1000))
    return made


class Problem:
    """Gradients of ``count`` tasks, and each contender's way to an update."""

    def __init__(self, method: str, count: int, width: int, tables: Tables) -> None:
        self.jacobians = conflicting(count, width, 4 if width < 10**6 else 2)
        self.first = [jacobian[0].clone() for jacobian in self.jacobians]
        self.rotation = cycle(range(len(self.jacobians)))
        self.steps: dict[str, Callable[[], Any]] = {}
        self.current = 0
        self._ours(method, count)
        peer = torchjd(method, count, of_gradients=True)
        if not isinstance(peer, str):
            self.steps["TorchJD"] = lambda: peer(self.jacobians[self.current])
        elif method in TORCHJD:
            tables.skip(peer)
        if method in libmtl.NAMES:
            try:
                self._libmtl(method, count, width)
            except libmtl.PeerMissingError as error:
                tables.skip(str(error))

    def _ours(self, method: str, count: int) -> None:
        weighting, losses = ours(method, count), torch.ones(count, dtype=torch.float64)
        if weighting.needs is Need.JACOBIAN:
            self.steps["ours"] = lambda: weighting(self.jacobians[self.current], losses)
            return
        # every gradient in memory of its own, as autograd gives them
        self.rows = [[[row.clone()] for row in jacobian] for jacobian in self.jacobians]

        def step() -> list[Tensor | None]:
            rows = self.rows[self.current]
            if weighting.needs is Need.CROSS:
                products = cross_gram(rows, self.rows[self.current - 1])
            else:
                products = gram(rows)
            return combine(rows, weighting(products, losses).tolist())

        self.steps["ours"] = step

    def _libmtl(self, method: str, count: int, width: int) -> None:
        parameter = nn.Parameter(torch.zeros(width))
        parameter.grad = torch.zeros(width)
        peer = libmtl.weighting(method, [parameter], count, iter(lambda: self.jacobians[self.current], None))
        losses = torch.ones(3, count) if method == "sdmgrad" else torch.ones(count, requires_grad=True)

        def step() -> Tensor | None:
            peer.backward(losses, **libmtl.DEFAULTS)
            return parameter.grad

        self.steps["LibMTL"] = step

    def prepare(self, name: str) -> None:
        """Take the next gradients, for the first contender of a round, and write their first row anew."""
        if name == next(iter(self.steps)):
            self.current = next(self.rotation)
        for place in (self.jacobians[self.current][0], *self._own_place()):
            place.copy_(self.first[self.current])

    def _own_place(self) -> list[Tensor]:
        return [self.rows[self.current][0][0]] if hasattr(self, "rows") else []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore")  # the peers' own
def test_update(benchmark: Any, tables: Tables, method: str, count: int, width: int) -> None:
    if tables.quick and (count not in (3, 10) or width != 5):
        pytest.skip("not in a quick run")
    problem = Problem(method, count, 10**width, tables)
    if len(problem.steps) == 1:
        pytest.skip("no peer to compare with")
    benchmark.group = f"gradients to update, T={count}, P=1e{width}"
    turns = Turns(problem.steps, prepare=problem.prepare).run(benchmark, 1.5)
    column = f"T={count}, P=1e{width}"
    for peer in turns.steps:
        if peer != "ours":
            tables.ratio(SPEED.format(peer), method, column, turns.ahead("ours", peer))
            goal = UPDATE_GOALS[peer].get(method)
            tables.mean(SPEED.format(peer), method, IN_MEAN, MEAN, goal)
            if goal is not None and column == "T=20, P=1e6":
                tables.goal(f"{SPEED.format(peer)}, {method}, {column}", 1, turns.ahead("ours", peer))
