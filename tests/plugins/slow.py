"""A weighting whose runs wait until they are told to go on, so that a test knows when they are under way."""

from __future__ import annotations

import os
import time
from pathlib import Path

from torch import Tensor

from mtlbench.contracts import Need, Weighting


class Slow(Weighting):
    """Equal weights; the second step leaves a mark in the folder ``marks`` and waits for the file ``go``."""

    needs = Need.LOSSES

    def __init__(self, marks: str) -> None:
        super().__init__()
        self.marks, self.steps = Path(marks), 0

    def after_step(self, losses: object) -> None:
        self.steps += 1
        if self.steps == 2:
            (self.marks / f"{os.getpid()}-{time.time_ns()}").touch()
            while not (self.marks / "go").exists():
                time.sleep(0.05)

    def forward(self, losses: Tensor) -> Tensor:
        """Return the sum."""
        return losses.sum()
