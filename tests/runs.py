"""Whole runs for tests: trained at once, or in pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mtlbench.errors import Interrupted
from mtlbench.training.loop import Outcome, train
from mtlbench.training.report import Silence

CPU = torch.device("cpu")


def outcome(experiment: Any, **more: Any) -> Outcome:
    """Train the run of an experiment."""
    return train(experiment.run, experiment.dataset, CPU, Silence(), **more)


def layout(x: torch.Tensor) -> list[int]:
    """Return the strides that say where elements are: a dimension of size 1 may have any."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


def facts(found: Outcome) -> dict[str, Any]:
    """Everything of an outcome that is not measured by a clock or a meter."""
    kept = {k: v for k, v in vars(found).items() if k not in ("seconds", "step_ms", "peak_mb")}
    return kept | {"model": {name: value.tolist() for name, value in found.model.items()}}


def outcome_in_pieces(experiment: Any, checkpoint: Path) -> Outcome:
    """Train the same run, interrupted in the first step, within an epoch and at the end of one."""
    pieces = 0
    for pause in (1, 2, 1, 3, 10**9):
        calls = iter(range(10**9))
        try:
            last = outcome(
                experiment, checkpoint=checkpoint, resume=True, stopped=lambda c=calls, p=pause: next(c) >= p
            )
            break
        except Interrupted:
            pieces += 1
            torch.rand(7)  # whatever happens between two pieces must not matter
    assert pieces >= 3
    return last
