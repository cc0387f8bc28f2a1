"""A third party's auxiliary task, in a plugin file of its own."""

from __future__ import annotations

from torch import Tensor

from mtlbench.contracts import Auxiliary, Map, Task
from mtlbench.losses import L1
from mtlbench.metrics import mae


class Negative(Auxiliary):
    """Negative: what is bright becomes dark.

    level: what stands for white.
    """

    def __init__(self, level: float = 1.0) -> None:
        self.level = level

    def task(self, input_shape: tuple[int, ...]) -> Task:
        return Task("negative", Map(input_shape[0]), L1(), (mae(),), auxiliary=True)

    def target(self, clean: Tensor) -> Tensor:
        return self.level - clean
