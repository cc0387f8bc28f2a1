"""Tasks whose target is derived from the input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mtlbench.contracts.task import Task


class Auxiliary(ABC):
    """A self-supervised task that any image dataset can be given with ``--aux``.

    Its target always comes from the clean image. What it does to the input, if anything, all tasks of the
    run see, since they share it. Both are functions of a single sample: what else is in the batch, and in
    which order, must not matter.
    """

    context: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def task(self, input_shape: tuple[int, ...]) -> Task:
        """Return the task for images of this shape ``(C, H, W)``, with ``auxiliary=True``.

        Raises `MtlbenchError` with one clear line for images that it cannot work on.
        """

    @abstractmethod
    def target(self, clean: Tensor) -> Tensor:
        """Return the targets ``[B, ...]`` of clean images, float32 ``[B, C, H, W]`` in 0..1.

        int64 or float32, as the task's loss takes them, without missing labels.
        """

    def alter(self, inputs: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return what the model sees instead of ``inputs``: float32, of the same shape, not in place.

        inputs: float32 ``[B, C, H, W]``, clean or as an auxiliary task named before this one left them, so
        that they may leave 0..1. generators: one for each sample; what is drawn from it is the same whenever
        the sample is read. By default the inputs stay as they are.
        """
        return inputs

    @property
    def alters(self) -> bool:
        """Whether the model sees something else than the clean image."""
        return type(self).alter is not Auxiliary.alter
