"""A third party's plugin file: datasets small enough for tests, and weightings of every need."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from mtlbench.contracts import (
    Batch,
    Dataset,
    Map,
    Need,
    Split,
    SplitName,
    Task,
    Vector,
    Weighting,
)
from mtlbench.losses import L1, BinaryCrossEntropy, CrossEntropy
from mtlbench.metrics import accuracy, box_l2, iou

SIZES = {"train": 24, "val": 12, "test": 12}


class Samples(Split):
    """Bright squares on noise; the targets follow from where the square is."""

    def __init__(self, size: int, seed: int, only: str | None = None, missing: float = 0.0) -> None:
        draw = torch.Generator().manual_seed(seed)
        corner = torch.randint(0, 8, (size, 2), generator=draw)
        self.inputs = torch.randint(0, 90, (size, 3, 16, 16), generator=draw, dtype=torch.uint8)
        masks = torch.zeros(size, 16, 16, dtype=torch.int64)
        for i, (y, x) in enumerate(corner.tolist()):
            masks[i, y : y + 8, x : x + 8] = 1
            self.inputs[i, :, y : y + 8, x : x + 8] += 120
        self.targets = {
            "mask": masks,
            "side": (corner[:, 1] > 3).long(),
            "box": torch.cat([corner, corner + 8], 1).float() / 16,
        }
        if only is not None:
            self.targets = {only: self.targets[only]}
        for name, target in self.targets.items():
            gone = torch.rand(size, generator=draw) < missing
            target[gone] = torch.nan if name == "box" else -1

    def __len__(self) -> int:
        return len(self.inputs)

    def fetch(self, indices: Tensor) -> Batch:
        return Batch(self.inputs[indices], {name: target[indices] for name, target in self.targets.items()})


class Tiny(Dataset):
    """Squares: where they are, on which side, in which box."""

    context: ClassVar[tuple[str, ...]] = ("data_dir",)
    encoder = "conv"
    title = "tiny"
    input_shape = (3, 16, 16)
    tasks = (
        Task("mask", Map(1), BinaryCrossEntropy(), (iou(),)),
        Task("side", Vector(2), CrossEntropy(), (accuracy(2),)),
        Task("box", Vector(4), L1(), (box_l2(),)),
    )

    def __init__(self, data_dir: Path, missing: float = 0.0, apart: bool = False, blank: str = "") -> None:
        self.missing, self.apart, self.blank = missing, apart, blank
        self.partial = missing > 0 or bool(blank)
        self.splits = {name: self._make(seed, name) for seed, name in enumerate(SIZES)}

    def _make(self, seed: int, name: str) -> Split | Mapping[str, Split]:
        if not self.apart:
            samples = Samples(SIZES[name], seed, missing=self.missing)
            split, _, task = self.blank.partition("/")
            if split == name:  # a whole split without a label for this task
                samples.targets[task].fill_(torch.nan if task == "box" else -1)
            return samples
        return {
            task.name: Samples(SIZES[name] - 3 * i, 10 * seed + i, only=task.name)
            for i, task in enumerate(self.tasks)
        }

    def split(self, name: SplitName) -> Split | Mapping[str, Split]:
        return self.splits[name]


class SignDrop(Weighting):
    """A Jacobian method: keeps, element by element, only what the majority's sign agrees with."""

    needs = Need.JACOBIAN

    def forward(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        sign = jacobian.sum(0).sign()
        return torch.where(jacobian.sign() == sign, jacobian, 0).sum(0)


class Momentum(Weighting):
    """A Gram method with state, randomness and reuse: random weights, averaged, drawn on every third step."""

    needs = Need.GRAM
    every = 3
    average: Tensor

    def __init__(self, tasks: tuple[Task, ...], beta: float = 0.5) -> None:
        super().__init__(tasks)
        self.beta = beta
        self.register_buffer("average", torch.ones(len(tasks), dtype=torch.float64))
        self.register_buffer("epochs", torch.zeros(()))

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        drawn = torch.rand(len(gram), generator=self.generator, dtype=torch.float64)
        self.average[self.active] = self.beta * self.average[self.active] + (1 - self.beta) * drawn
        return self.average[self.active]

    def after_epoch(self, losses: Tensor) -> None:
        self.epochs += 1


class Explode(Weighting):
    """Makes every run diverge at once."""

    needs = Need.LOSSES

    def forward(self, losses: Tensor) -> Tensor:
        return torch.full_like(losses, 1e30)


class ExplodeGram(Explode):
    needs = Need.GRAM

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        return torch.full_like(losses, 1e30)


class ExplodeJacobian(Explode):
    needs = Need.JACOBIAN

    def forward(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        return 1e30 * jacobian.sum(0)
