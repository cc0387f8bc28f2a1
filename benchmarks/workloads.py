"""Models and batches that whole training steps are timed on, ours and the peers' alike.

``WORKLOADS[name]()`` builds the same model and batch at every call, so that each method has its own. P counts
what a gradient weighting differentiates by, T the tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from mtlbench.contracts import (
    Architecture,
    Batch,
    Encoder,
    Map,
    PyramidShape,
    Task,
    Vector,
    Weighting,
)
from mtlbench.gradients import GradientEngine
from mtlbench.heads import UNetHead, build_head
from mtlbench.losses import L1, BinaryCrossEntropy, CrossEntropy
from mtlbench.training.optim import build_optimizer
from mtlbench_zoo.architectures.hps import HardParameterSharing
from mtlbench_zoo.architectures.mmoe import MMoE
from mtlbench_zoo.encoders.resnet import ResNet18
from mtlbench_zoo.encoders.unet import UNet


class Perceptron(Encoder):
    """64 -> 128 -> 128 -> 64, on inputs ``[B, 64, 1, 1]``."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (64, 128, 128, 64)
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
        self.stages = nn.ModuleList([nn.Sequential(*layers, nn.Unflatten(1, (64, 1, 1)))])
        self.shape = PyramidShape((64,), (1,))


class WholeUNet(Encoder):
    """Both paths of a U-Net of width 32 as one shared stage."""

    def __init__(self) -> None:
        super().__init__()
        down = UNet(3, width=32)
        self.stages = nn.ModuleList([_UpAndDown(down, UNetHead(32, down.shape))])
        self.shape = PyramidShape((32,), (1,))


class _UpAndDown(nn.Module):
    def __init__(self, down: UNet, up: UNetHead) -> None:
        super().__init__()
        self.down, self.up = down, up

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.up(self.down(x), (x.shape[2], x.shape[3]))
        return features


@dataclass(frozen=True)
class Workload:
    """A model in parts, and one batch with targets for all tasks."""

    tasks: Sequence[Task]
    architecture: Architecture
    heads: nn.ModuleDict
    batch: Batch

    @property
    def shared(self) -> list[nn.Parameter]:
        """What a gradient weighting differentiates by."""
        return list(self.architecture.shared_parameters())

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is trained."""
        return [*self.architecture.parameters(), *self.heads.parameters()]

    def losses(self) -> list[Tensor]:
        """Return the tasks' losses in one graph, as a plain training loop would."""
        pyramids = self.architecture(self.batch.inputs).pyramids
        height, width = self.batch.inputs.shape[2:]
        return [
            task.loss(
                self.heads[task.name](pyramids[task.name], (height, width)), self.batch.targets[task.name]
            )
            for task in self.tasks
        ]

    def engine(self, weighting: Weighting, **options: object) -> GradientEngine:
        """Return mtlbench's engine on this model."""
        heads = dict(self.heads.items())
        return GradientEngine(self.architecture, heads, self.tasks, weighting, **options)  # type: ignore[arg-type]


def mlp(count: int) -> Workload:
    """Four experts of three linear layers, P = 132 352, batch 256."""
    tasks = [Task(f"t{i}", Vector(3), (L1, CrossEntropy)[i % 2](), ()) for i in range(count)]
    return _workload(partial(MMoE, experts=4), Perceptron, tasks, (256, 64, 1, 1))


def unet(count: int) -> Workload:
    """A whole U-Net of width 32 with dense tasks, P = 1.79 million, batch 16 of 64 x 64."""
    tasks = [Task(f"t{i}", Map(3), (L1, CrossEntropy)[i % 2](), ()) for i in range(count)]
    return _workload(HardParameterSharing, WholeUNet, tasks, (16, 3, 64, 64))


def resnet18(count: int) -> Workload:
    """ResNet-18, P = 11.2 million, batch 16 of 64 x 64."""
    tasks = [Task(f"t{i}", Vector(3), (L1, CrossEntropy)[i % 2](), ()) for i in range(count)]
    return _workload(HardParameterSharing, lambda: ResNet18(3), tasks, (16, 3, 64, 64))


def pets() -> Workload:
    """What a run on pets is made of unless told otherwise, images 64 x 64: the encoder alone is shared."""
    tasks = [
        Task("segmentation", Map(1), BinaryCrossEntropy(), ()),
        Task("classification", Vector(2), CrossEntropy(), ()),
        Task("bbox", Vector(4), L1(), ()),
    ]
    return _workload(HardParameterSharing, lambda: UNet(3), tasks, (16, 3, 64, 64))


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "mlp, T=3": partial(mlp, 3),
    "mlp, T=8": partial(mlp, 8),
    "unet, T=3": partial(unet, 3),
    "resnet18, T=3": partial(resnet18, 3),
    "resnet18, T=10": partial(resnet18, 10),
    "pets, T=3": pets,
}


def _workload(
    share: Callable[..., Architecture],
    encoder: Callable[[], Encoder],
    tasks: Sequence[Task],
    size: tuple[int, ...],
) -> Workload:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        architecture = share(lambda task=None: encoder(), tasks)
        heads = nn.ModuleDict()
        for task in tasks:
            heads[task.name] = build_head(task.output, architecture.shape(task.name))
        targets = {task.name: _target(task, size) for task in tasks}
        return Workload(tasks, architecture, heads, Batch(torch.randn(size), targets))


def _target(task: Task, size: tuple[int, ...]) -> Tensor:
    """Random labels for any of the losses above."""
    batch, _, height, width = size
    places = (height, width) if isinstance(task.output, Map) else ()
    outputs = task.output.channels if isinstance(task.output, Map) else task.output.size
    if isinstance(task.loss, CrossEntropy):
        return torch.randint(0, outputs, (batch, *places))
    if isinstance(task.loss, BinaryCrossEntropy):
        return torch.randint(0, 2, (batch, *places))
    return torch.rand(batch, outputs, *places)


def trained(
    workload: Workload, weighting: Weighting, fused: bool = True, **options: object
) -> Callable[[], None]:
    """Return one step of training with mtlbench's engine and Adam, gradients left empty.

    The learning rate is so low that all methods keep working on the same problem.
    """
    engine = workload.engine(weighting, **options)
    protocol = {"optimizer": "adam", "lr": 1e-5, "weight_decay": 0.0, "momentum": 0.0}
    model = nn.ModuleList([workload.architecture, workload.heads])
    steps = build_optimizer(protocol, model, weighting)
    for group in steps.param_groups:
        group["fused"] = fused

    def step() -> None:
        engine.step(workload.batch)
        steps.step()
        steps.zero_grad(set_to_none=True)

    return step
