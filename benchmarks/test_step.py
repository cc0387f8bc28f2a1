"""What a whole training step costs relative to equal weighting: forward, gradients, weights, fused Adam.

Run: python -m pytest benchmarks/test_step.py --benchmark-enable --benchmark-columns=median,iqr,rounds

All methods of a group take turns inside every round, so that a busy machine slows them alike; `relative` in
the JSON (--benchmark-json) is the median over the rounds of the ratio to equal weighting.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch

from mtlbench.contracts import Batch, Map, Task, Vector, Weighting
from mtlbench.gradients import GradientEngine
from mtlbench.heads import build_head
from mtlbench.losses import L1, BinaryCrossEntropy, CrossEntropy
from mtlbench.training.optim import build_optimizer
from mtlbench_zoo.architectures.hps import HardParameterSharing
from mtlbench_zoo.encoders.resnet import ResNet18
from mtlbench_zoo.encoders.unet import UNet
from mtlbench_zoo.weightings.ew import EqualWeighting
from mtlbench_zoo.weightings.mgda import MGDA
from mtlbench_zoo.weightings.rlw import RLW

TASKS = (
    Task("segmentation", Map(1), BinaryCrossEntropy(), ()),
    Task("classification", Vector(2), CrossEntropy(), ()),
    Task("bbox", Vector(4), L1(), ()),
)
METHODS: dict[str, tuple[Callable[[], Weighting], Literal["parameters", "features"]]] = {
    "ew": (EqualWeighting, "parameters"),
    "rlw": (RLW, "parameters"),
    "mgda, parameters": (MGDA, "parameters"),
    "mgda, features": (MGDA, "features"),
}
PROTOCOL = {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0, "momentum": 0.0}


def step_of(encoder: Callable[[], Any], method: str) -> Callable[[], None]:
    torch.manual_seed(0)
    make, space = METHODS[method]
    architecture = HardParameterSharing(encoder, TASKS)
    heads = torch.nn.ModuleDict({t.name: build_head(t.output, architecture.shape(t.name)) for t in TASKS})
    weighting = make()
    engine = GradientEngine(architecture, dict(heads.items()), TASKS, weighting, space)
    model = torch.nn.ModuleList([architecture, heads])
    optimizer = build_optimizer(PROTOCOL, model, weighting)
    targets = {
        "segmentation": torch.randint(0, 2, (16, 64, 64)),
        "classification": torch.randint(0, 2, (16,)),
        "bbox": torch.rand(16, 4),
    }
    batch = Batch(torch.rand(16, 3, 64, 64), targets)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        engine.step(batch)
        optimizer.step()

    return step


@pytest.mark.parametrize("encoder", [UNet, ResNet18], ids=["unet", "resnet18"])
def test_step(benchmark: Any, encoder: Callable[..., Any]) -> None:
    steps = {method: step_of(lambda: encoder(3), method) for method in METHODS}
    times: dict[str, list[float]] = {method: [] for method in METHODS}

    def turn() -> None:
        for method, step in steps.items():
            begin = time.perf_counter()
            step()
            times[method].append(time.perf_counter() - begin)

    benchmark.pedantic(turn, rounds=20, warmup_rounds=3)
    for method, found in times.items():
        ratios = [a / b for a, b in zip(found[3:], times["ew"][3:], strict=True)]
        benchmark.extra_info[f"relative: {method}"] = round(statistics.median(ratios), 3)
        print(f"{encoder.__name__:10} {method:18} {statistics.median(found[3:]) * 1e3:7.1f} ms"
              f"  {statistics.median(ratios):5.2f} x ew")  # fmt: skip
