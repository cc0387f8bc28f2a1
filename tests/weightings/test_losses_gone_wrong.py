"""Losses that are no numbers: the training loop says so, so a weighting of losses must not fail before it."""

from __future__ import annotations

import math

import pytest
import torch

from mtlbench.registry import Registry
from mtlbench.testing import tiny_tasks

TASKS = tiny_tasks(3)
NAMES = (
    "cov",
    "dtp",
    "dwa",
    "dwa[window=1]",
    "famo",
    "gls",
    "go4align",
    "imtl-l",
    "scale-invariant",
    "softadapt",
    "softadapt[window=1]",
    "stch",
    "stch[warmup=0]",
)


@pytest.mark.parametrize("spec", NAMES)
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_raises_nothing(spec: str, bad: float) -> None:
    weighting = Registry().choose("weightings", spec).build(tasks=TASKS)
    usual = torch.tensor([0.5, 1.0, 2.0])
    for losses in (usual, usual, torch.tensor([1.0, bad, 2.0]), torch.full((3,), bad), usual):
        answer = weighting(losses.requires_grad_())
        assert answer.shape in {(), (3,)}
        weighting.after_step(lambda: torch.tensor([1.0, bad, 2.0], dtype=torch.float64))
        weighting.after_epoch(torch.tensor([1.0, math.nan, 2.0], dtype=torch.float64))
