"""A third party's plugin file: data in float64 and an encoder without batch norm, where sums are exact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mtlbench.contracts import (
    Batch,
    Dataset,
    Encoder,
    Need,
    PyramidShape,
    Split,
    SplitName,
    Task,
    Vector,
    Weighting,
)
from mtlbench.losses import L1, MSE, CrossEntropy
from mtlbench.metrics import accuracy, box_l2

SIZES = {"train": 20, "val": 9, "test": 3}


class Numbers(Split):
    """Noise with a gradient; the targets follow from it, some are missing."""

    def __init__(self, size: int, seed: int, missing: float) -> None:
        draw = torch.Generator().manual_seed(seed)
        slope = torch.rand(size, 3, generator=draw, dtype=torch.float64)
        ramp = torch.linspace(-1, 1, 8, dtype=torch.float64)
        noise = torch.randn(size, 3, 8, 8, generator=draw, dtype=torch.float64)
        self.inputs = slope[:, :, None, None] * ramp + 0.3 * noise
        box = torch.cat([slope[:, :2], slope[:, :2] + 0.1 + slope[:, 2:]], 1)
        self.targets = {"kind": (slope[:, 0] > 0.5).long(), "box": box, "size": slope.sum(1, keepdim=True)}
        for target in self.targets.values():
            gone = torch.rand(size, generator=draw) < missing
            target[gone] = torch.nan if target.is_floating_point() else -1

    def __len__(self) -> int:
        return len(self.inputs)

    def fetch(self, indices: Tensor) -> Batch:
        return Batch(self.inputs[indices], {name: target[indices] for name, target in self.targets.items()})


class One(Split):
    """The samples of one task."""

    def __init__(self, samples: Numbers, task: str) -> None:
        self.samples, self.task = samples, task

    def __len__(self) -> int:
        return len(self.samples)

    def fetch(self, indices: Tensor) -> Batch:
        batch = self.samples.fetch(indices)
        return Batch(batch.inputs, {self.task: batch.targets[self.task]})


class Plain(Dataset):
    """missing: share of labels that are not there. apart: each task has inputs of its own. bad: training
    sample whose input is not a number."""

    encoder = "smooth"
    title = "plain"
    input_shape = (3, 8, 8)
    tasks = (
        Task("kind", Vector(2), CrossEntropy(), (accuracy(2),)),
        Task("box", Vector(4), L1(), (box_l2(),)),
        Task("size", Vector(1), MSE(), ()),
    )

    def __init__(self, data_dir: Path, missing: float = 0.0, apart: bool = False, bad: int = -1) -> None:
        self.partial = missing > 0
        self.splits: dict[str, Split | Mapping[str, Split]] = {}
        for seed, (name, size) in enumerate(SIZES.items()):
            if apart:
                self.splits[name] = {
                    task.name: One(
                        Numbers(size - 4 * i * (name == "train"), 10 * seed + i, missing), task.name
                    )
                    for i, task in enumerate(self.tasks)
                }
            else:
                samples = Numbers(size, seed, missing)
                if name == "train" and bad >= 0:
                    samples.inputs[bad] = torch.nan
                self.splits[name] = samples

    def split(self, name: SplitName) -> Split | Mapping[str, Split]:
        return self.splits[name]


class Smooth(Encoder):
    """Two convolutions and what lies between them. norm: batch norm; drop: share of values dropped."""

    def __init__(self, in_channels: int, norm: bool = False, drop: float = 0.0) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride=2, padding=1),
                nn.BatchNorm2d(outputs) if norm else nn.Identity(),
                nn.Tanh(),
                nn.Dropout(drop),
            )
            for inputs, outputs in ((in_channels, 4), (4, 6))
        )
        self.shape = PyramidShape((4, 6), (2, 4))


class Ones(Weighting):
    """What equal weighting does, asked of a Gram matrix."""

    needs = Need.GRAM

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        return torch.ones_like(losses)
