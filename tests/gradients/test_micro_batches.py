"""Only one micro-batch's graph is in memory at a time, whichever way weights are found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from mtlbench.contracts import Batch
from mtlbench.training.model import build, build_engine

SIZES = (12, 3)
"""Samples of a batch and of a micro-batch: no parameter has so many rows."""


class Saved:
    """A tensor that autograd keeps for going back; those with a row for each sample are counted."""

    live: ClassVar[int] = 0
    peak: ClassVar[int] = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.size = tensor.numel() if tensor.dim() > 1 and len(tensor) in SIZES else 0
        Saved.live += self.size
        Saved.peak = max(Saved.peak, Saved.live)

    def __del__(self) -> None:
        Saved.live -= self.size


def _peak(setting: Any, parts: list[Batch]) -> int:
    engine = build_engine(setting.run, setting.dataset, *build(setting.run, setting.dataset))
    Saved.live = Saved.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        for _ in range(2):  # the second may reuse weights
            for parameter in engine.architecture.parameters():
                parameter.grad = None
            engine.step(parts, others=[parts] * (engine.weighting.needs.batches - 1))
    return Saved.peak


@pytest.mark.parametrize(
    "method",
    ["ew", "mgda", "mgda features", "every[of=nash,k=2]", "sign-drop", "sign-drop features", "modo"],
)
def test_memory_is_that_of_one_micro_batch(method: str, experiment: Callable[..., Any]) -> None:
    weight, _, grad = method.partition(" ")
    setting = experiment(weight=weight, grad=grad or "parameters")
    split = setting.dataset.split("train")
    whole = split.fetch(torch.arange(12)).to(torch.device("cpu"))
    parts = [split.fetch(some).to(torch.device("cpu")) for some in torch.arange(12).split(3)]
    assert _peak(setting, parts) < 0.3 * _peak(setting, [whole])
