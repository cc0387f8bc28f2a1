"""What a whole training step costs relative to equal weighting: forward, gradients, weights, fused Adam.

Run: python -m pytest benchmarks/test_step.py --benchmark-enable --benchmark-columns=median,iqr,rounds -s

All methods of a group take turns inside every round, so that a busy machine slows them alike. In the JSON
(--benchmark-json), `relative` is the median over the rounds of the ratio to equal weighting, of the time on
the clock and of the processor's time, and `peak` the memory in MB above what lies there between steps, each
measured in a process of its own.
"""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from workloads import WORKLOADS, Workload, trained

from mtlbench_zoo.weightings.ew import EqualWeighting
from mtlbench_zoo.weightings.mgda import MGDA
from mtlbench_zoo.weightings.rlw import RLW

METHODS: dict[str, Callable[[Workload], Callable[[], None]]] = {
    "ew": lambda workload: trained(workload, EqualWeighting()),
    "rlw": lambda workload: trained(workload, RLW()),
    "mgda": lambda workload: trained(workload, MGDA()),
    "mgda, features": lambda workload: trained(workload, MGDA(), space="features"),
}
ROUNDS, WARMUP = 20, 3


def suits(method: str, workload: str) -> bool:
    """Experts mix features, so that no feature tensor feeds all tasks."""
    return not ("features" in method and workload.startswith("mlp"))


@pytest.mark.parametrize("workload", WORKLOADS)
def test_step(benchmark: Any, workload: str) -> None:
    steps = {name: make(WORKLOADS[workload]()) for name, make in METHODS.items() if suits(name, workload)}
    clock: dict[str, list[float]] = {name: [] for name in steps}
    processor: dict[str, list[float]] = {name: [] for name in steps}

    def turn() -> None:
        for name, step in steps.items():
            begin, worked = time.perf_counter(), time.process_time()
            step()
            processor[name].append(time.process_time() - worked)
            clock[name].append(time.perf_counter() - begin)

    gc.disable()
    benchmark.pedantic(turn, rounds=ROUNDS, warmup_rounds=WARMUP)
    gc.enable()
    for name in steps:
        relative, worked = (_relative(times, name) for times in (clock, processor))
        benchmark.extra_info[f"relative: {name}"] = relative, worked
        benchmark.extra_info[f"peak: {name}"] = peak = _peak(workload, name)
        took = statistics.median(clock[name][WARMUP:]) * 1e3
        print(f"{workload:15} {name:18} {took:7.1f} ms {relative:6.2f} x ew {worked:6.2f} x ew (processor)"
              f" {peak:7.0f} MB")  # fmt: skip


def _relative(times: dict[str, list[float]], name: str) -> float:
    pairs = zip(times[name][WARMUP:], times["ew"][WARMUP:], strict=True)
    return round(statistics.median(a / b for a, b in pairs), 3)


def _peak(workload: str, method: str) -> float:
    done = subprocess.run(
        [sys.executable, __file__, workload, method], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main(workload: str, method: str) -> None:
    """Print the peak memory of a step above what lies there between steps, in MB."""
    import ctypes

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
