"""A plugin file with a task of every kind that can be drawn, and an architecture that shows its inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from mtlbench.contracts import (
    Architecture,
    Batch,
    Dataset,
    EncoderFactory,
    Features,
    Map,
    PyramidShape,
    Reading,
    Split,
    SplitName,
    Task,
    Vector,
)
from mtlbench.losses import L1, MSE, BinaryCrossEntropy, Cosine, CrossEntropy
from mtlbench.metrics import accuracy, angle_mean, box_iou, iou, mae

SIDE = 16


class KindsSplit(Split):
    """Noise, with targets that follow from it; a pixel, a direction, a class and a box have no label."""

    def __init__(self, size: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.inputs = torch.randint(0, 256, (size, 3, SIDE, SIDE), generator=draw, dtype=torch.uint8)
        grey = self.inputs.float().mean(1) / 255
        boxes = torch.rand(size, 2, generator=draw) / 2
        self.targets = {
            "parts": (grey * 4.99).long().clamp(max=4),
            "depth": grey[:, None] * 10,
            "normal": nn.functional.normalize(self.inputs.float() - 128, dim=1),
            "copy": self.inputs.float() / 255,
            "kind": (grey.mean((1, 2)) * 100).long() % 3,
            "yes": (grey.mean((1, 2)) > 0.5).long(),
            "box": torch.cat([boxes, boxes + 0.4], 1),
            "pose": torch.randn(size, 8, generator=draw),
        }
        self.targets["parts"][:, 0, :3] = -1
        self.targets["depth"][:, 0, 0, 2] = torch.nan
        self.targets["normal"][:, :, 5, 5] = torch.nan
        self.targets["kind"][0] = -1
        self.targets["box"][0] = torch.nan

    def __len__(self) -> int:
        return len(self.inputs)

    def fetch(self, indices: Tensor) -> Batch:
        return Batch(self.inputs[indices], {name: target[indices] for name, target in self.targets.items()})


class Kinds(Dataset):
    """One task of every kind."""

    context: ClassVar[tuple[str, ...]] = ()
    encoder = "conv[width=4,depth=2]"
    title = "kinds"
    input_shape = (3, SIDE, SIDE)
    partial = True
    tasks = (
        Task("parts", Map(5), CrossEntropy(), (iou(5),)),
        Task("depth", Map(1), L1(), (mae("m"),)),
        Task("normal", Map(3), Cosine(), (angle_mean(),)),
        Task("copy", Map(3), MSE(), (mae(),), auxiliary=True),
        Task("kind", Vector(3), CrossEntropy(), (accuracy(3),)),
        Task("yes", Vector(1), BinaryCrossEntropy(), (accuracy(),)),
        Task("box", Vector(4), L1(), (box_iou(),)),
        Task("pose", Vector(8), MSE(), (mae(),)),
    )

    def __init__(self, salt: int = 0) -> None:
        sizes: tuple[SplitName, ...] = ("train", "val", "test")
        self.splits = {name: KindsSplit(10, 10 * salt + seed) for seed, name in enumerate(sizes)}

    def split(self, name: SplitName) -> KindsSplit:
        return self.splits[name]


class Glass(Architecture):
    """One encoder; a gate and an attention mask a task, and matrices that are only there to be seen."""

    cost: ClassVar[str] = "1 trunk"

    def __init__(self, encoder: EncoderFactory, tasks: Sequence[Task]) -> None:
        super().__init__(encoder, tasks)
        self.encoder = encoder()
        channels = self.encoder.shape.channels
        self.masks = nn.ModuleList(nn.Conv2d(channels[0], channels[0], 1) for _ in tasks)
        self.gates = nn.ModuleList(nn.Linear(channels[-1], 2) for _ in tasks)
        self.mixing = nn.Parameter(torch.eye(len(tasks)) * 0.9 + 0.05, requires_grad=False)

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        first, *rest = self.encoder(x)
        pooled = rest[-1].mean((2, 3))
        pyramids, readings = (
            {},
            [
                Reading("mixing", "stage1", self.mixing, names=self.task_names),
                Reading("mixing", "stage2", torch.stack([self.mixing, -self.mixing]), names=self.task_names),
            ],
        )
        for name in self.task_names if tasks is None else tasks:
            index = self.task_names.index(name)
            mask = self.masks[index](first).sigmoid()
            gate = self.gates[index](pooled).softmax(1)
            pyramids[name] = (first * mask, *(level * gate[:, :1, None, None] for level in rest))
            readings += [
                Reading("attention", "stage1", mask, name),
                Reading("gate", "stage2", gate, name, ("let through", "hold back")),
            ]
        return Features(pyramids, readings=tuple(readings))

    def shape(self, task: str) -> PyramidShape:
        return self.encoder.shape

    def shared_parameters(self) -> list[nn.Parameter]:
        return list(self.encoder.parameters())
