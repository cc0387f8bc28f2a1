"""What a whole training step costs: forward, gradients, weights, Adam; beside the peers and equal weighting.

Run: make bench, or python -m pytest benchmarks/test_step.py --benchmark-enable --benchmark-only [--quick]

All take turns inside every round, so that a busy machine slows them alike; a figure is the median over the
rounds of a ratio. Peak memory, in MB above what lies there between steps, is measured in a process of its own
for each.

Memory is had from the C library as it comes. glibc gives large blocks back to the system when they are freed,
and the next ones cost time; `mtlbench run` keeps them. At the end some steps are timed once more with freed
memory kept, that of the peers, too.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
from peers import libmtl
from peers.steps import libmtl_mgda, torchjd
from tables import Tables, figure
from turns import Turns
from workloads import WORKLOADS, Workload, trained

from mtlbench.gradients import ghost
from mtlbench.registry import Registry
from mtlbench.training.memory import keep_freed_memory


def ours(spec: str, **options: object) -> Callable[[Workload], Callable[[], None]]:
    """Return what makes a step with mtlbench's method ``spec``."""

    def make(workload: Workload) -> Callable[[], None]:
        weighting = Registry().choose("weightings", spec).build(tasks=workload.tasks)
        return trained(workload, weighting, **options)

    return make


def formed(workload: Workload) -> Callable[[], None]:
    """Return a step with mgda that forms every task's weight gradients, in wide layers, too."""
    step = ours("mgda")(workload)

    def plain() -> None:
        with patch.object(ghost, "pays", lambda *sizes: False):
            step()

    return plain


PLAIN = "ew, Adam not fused"
METHODS: dict[str, Callable[[Workload], Callable[[], None]]] = {
    "ew": ours("ew"),
    PLAIN: ours("ew", fused=False),
    "mgda": ours("mgda"),
    "mgda, all gradients formed": formed,
    "mgda, features": ours("mgda", space="features"),
    "TorchJD's MGDA": torchjd,
    "TorchJD's MGDA, tuned": partial(torchjd, tuned=True),
    "LibMTL's MGDA": libmtl_mgda,
    "LibMTL's MGDA, features": partial(libmtl_mgda, features=True),
}
PEERS = ("TorchJD's MGDA", "TorchJD's MGDA, tuned", "LibMTL's MGDA")
LOSSES = (
    "rlw",
    "uw",
    "dwa",
    "gls",
    "stch",
    "imtl-l",
    "softadapt",
    "scale-invariant",
    "cov",
    "dtp",
    "go4align",
)
QUICK = ("mlp, T=3", "resnet18, T=3")

COST = "A whole step: times the cost of equal weighting"
PLAIN_COST = "The same, times the cost of equal weighting with Adam not fused, torch's default"
SPEED = "A whole step with mgda: times faster than the peers"
KEPT_COST = "With freed memory kept for all: times the cost of equal weighting with Adam not fused"
KEPT_SPEED = "With freed memory kept for all: a whole step with mgda, times faster than the peers"
CHEAP = "A whole step with a method of losses: times the cost of equal weighting"
SPEED_GOALS: dict[str, tuple[float, float, float]] = {
    "mlp, T=3": (1.3, 1.15, 1.6),
    "unet, T=3": (1.25, 1, 1.15),
    "resnet18, T=3": (1.7, 1.3, 2.2),
    "resnet18, T=10": (2.4, 1.7, 2.8),
}
"""How far ahead of each of PEERS mgda was to be."""
COST_GOALS = {"mlp, T=3": 1.5, "unet, T=3": 1.9, "resnet18, T=3": 1.8, "resnet18, T=10": 4.7}
"""What mgda was to cost at most, beside equal weighting with torch's default Adam."""
PEAK_GOALS = {"TorchJD's MGDA": 3.5, "LibMTL's MGDA": 7.0}
"""By how many times less memory mgda was to take, for ResNet-18 and ten tasks."""
PEAK = "Peak memory of a step above rest, MB"


def suits(method: str, workload: str) -> bool:
    """Experts mix features, so none feeds all tasks; on pets, heads read features of several levels."""
    if workload.startswith("mlp"):
        return "features" not in method
    return not (workload.startswith("pets") and method.startswith(("TorchJD", "LibMTL")))


def steps_of(methods: dict[str, Any], workload: str, tables: Tables) -> dict[str, Callable[[], None]]:
    steps = {}
    for name, make in methods.items():
        if suits(name, workload):
            try:
                steps[name] = make(WORKLOADS[workload]())
            except libmtl.PeerMissingError as error:
                tables.skip(str(error))
    return steps


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.filterwarnings("ignore")  # the peers' own
def test_step(benchmark: Any, tables: Tables, workload: str) -> None:
    if tables.quick and workload not in QUICK:
        pytest.skip("not in a quick run")
    steps = steps_of(METHODS, workload, tables)
    turns = Turns(steps, again=True).run(benchmark, 5 if tables.quick else 90, most=200)
    for name in steps:
        tables.cell(COST, name, workload, figure(1 / turns.ahead(name, "ew")))
        tables.cell(PLAIN_COST, name, workload, figure(1 / turns.ahead(name, PLAIN)))
        if name in PEERS:
            tables.ratio(SPEED, name, workload, turns.ahead("mgda", name))
        elif not name.startswith("ew") and not name.startswith("LibMTL"):
            tables.keep(
                f"A whole step: speed relative to equal weighting, {name}, {workload}",
                turns.ahead(name, "ew"),
            )
    peaks: dict[str, float] = {}
    if not tables.quick and workload.startswith(("resnet18", "unet")):
        peaks = {name: _peak(workload, name) for name in steps}
        for name, peak in peaks.items():
            tables.cell(PEAK, name, workload, f"{peak:.0f}")
    _judge(tables, workload, turns, peaks)


def _judge(tables: Tables, workload: str, turns: Turns, peaks: dict[str, float]) -> None:
    """Say which goals were met."""
    if workload in SPEED_GOALS:
        for peer, goal in zip(PEERS, SPEED_GOALS[workload], strict=True):
            if peer in turns.steps:
                tables.goal(f"{SPEED}, {peer}, {workload}", goal, turns.ahead("mgda", peer))
        tables.goal(f"{PLAIN_COST}, {workload}", COST_GOALS[workload], turns.ahead(PLAIN, "mgda"), most=True)
    if "mgda, features" in turns.steps:
        cost = turns.ahead("ew", "mgda, features")
        tables.goal(f"{COST}, mgda, features, {workload}", 1.05, cost, most=True)
    if workload == "resnet18, T=10":
        for peer, goal in PEAK_GOALS.items():
            if peer in peaks:
                tables.goal(f"Less memory than {peer}, {workload}", goal, peaks[peer] / peaks["mgda"])


@pytest.mark.parametrize("workload", ["unet, T=3", "resnet18, T=3", "resnet18, T=10"])
@pytest.mark.filterwarnings("ignore")  # the peers' own
def test_kept(benchmark: Any, tables: Tables, workload: str) -> None:
    if tables.quick:
        pytest.skip("not in a quick run")
    steps = steps_of({name: METHODS[name] for name in ("ew", PLAIN, "mgda", *PEERS)}, workload, tables)
    keep_freed_memory()
    turns = Turns(steps, again=True).run(benchmark, 35, most=200)
    for name in steps:
        tables.cell(KEPT_COST, name, workload, figure(1 / turns.ahead(name, PLAIN)))
        if name in PEERS:
            tables.cell(KEPT_SPEED, name, workload, figure(turns.ahead("mgda", name)))


@pytest.mark.parametrize("workload", ["mlp, T=3", "resnet18, T=3"])
def test_losses(benchmark: Any, tables: Tables, workload: str) -> None:
    if tables.quick and workload != "mlp, T=3":
        pytest.skip("not in a quick run")
    steps = steps_of({name: ours(name) for name in ("ew", *LOSSES)}, workload, tables)
    turns = Turns(steps).run(benchmark, 5 if tables.quick else 90, most=1000)
    for name in LOSSES:
        ahead = turns.ahead(name, "ew")
        tables.cell(CHEAP, name, workload, f"{1 / ahead:.3f}")
        tables.goal(f"{CHEAP}, {name}, {workload}", 1.02, 1 / ahead, most=True)
        tables.keep(f"A whole step: speed relative to equal weighting, {name}, {workload}", ahead)


def _peak(workload: str, method: str) -> float:
    done = subprocess.run(
        [sys.executable, __file__, workload, method], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main(workload: str, method: str) -> None:
    """Print the peak memory of a step above what lies there between steps, in MB."""
    import ctypes
    import gc

    import torch

    from mtlbench.training.memory import PeakMemory

    step = METHODS[method](WORKLOADS[workload]())
    for _ in range(3):
        step()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    peak = PeakMemory(torch.device("cpu"))
    before = peak.read()
    for _ in range(3):
        step()
    print(peak.read() - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
