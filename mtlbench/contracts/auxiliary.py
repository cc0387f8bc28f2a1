"""Tasks whose target is derived from the input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from mtlbench.contracts.task import Task


class Auxiliary(ABC):
    """A self-supervised task that any image dataset can be given."""

    context: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def task(self, input_shape: tuple[int, ...]) -> Task:
        """Return the task for inputs of this shape, with ``auxiliary=True``."""

    @abstractmethod
    def derive(self, inputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return (what the model sees, the target) for clean ``inputs`` ``[B, C, H, W]`` in 0..1."""
