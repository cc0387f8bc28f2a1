"""A weighting that kills its own process, as a machine short of memory would."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from torch import Tensor

from mtlbench.contracts import Need, Weighting


class Deadly(Weighting):
    """Equal weights until step ``at``, then SIGKILL; with ``once``, only if that file is not there yet."""

    needs = Need.LOSSES

    def __init__(self, at: int = 2, once: str = "") -> None:
        super().__init__()
        self.at, self.once, self.steps = at, once, 0

    def after_step(self, losses: object) -> None:
        self.steps += 1
        if self.steps == self.at and not (self.once and Path(self.once).exists()):
            if self.once:
                Path(self.once).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def forward(self, losses: Tensor) -> Tensor:
        """Return the sum."""
        print("{\"a plugin's own words", end="")
        return losses.sum()
