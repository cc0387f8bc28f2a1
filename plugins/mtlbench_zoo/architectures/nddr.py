"""Neural discriminative dimensionality reduction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtlbench.contracts import Architecture, EncoderFactory, Features, PyramidShape, Task
from mtlbench_zoo.architectures._parallel import Parallel, near_identity
from mtlbench_zoo.architectures._parts import Modules, require


class Fusion(nn.Module):
    """One layer: for each task a 1x1 convolution of the joined features of all tasks, and a batch norm."""

    def __init__(self, channels: int, tasks: int, own: float) -> None:
        super().__init__()
        self.reduce: Modules[nn.Conv2d] = Modules(
            nn.Conv2d(tasks * channels, channels, 1, bias=False) for _ in range(tasks)
        )
        self.norm: Modules[nn.BatchNorm2d] = Modules(nn.BatchNorm2d(channels) for _ in range(tasks))
        with torch.no_grad():
            for row, layer in zip(near_identity(tasks, own), self.reduce, strict=True):
                layer.weight.copy_(torch.kron(row, torch.eye(channels))[:, :, None, None])

    def forward(self, features: Sequence[Tensor], receiver: int) -> Tensor:
        """Return what the encoder of task ``receiver`` goes on from."""
        reduced = self.norm[receiver](self.reduce[receiver](torch.cat([*features], dim=1)))
        return functional.relu(reduced, inplace=True)


class NDDR(Architecture):
    """NDDR-CNN: one encoder a task; after every stage their features are joined and reduced for each task.

    With ``f_j`` what the encoder of task j gives at stage s, ``[B, C, H, W]``, the encoder of task i goes on
    from

        ``ReLU(BatchNorm(W_s[i] * [f_1; ...; f_T]))``,   ``W_s[i]``: a 1x1 convolution from T C to C channels,

    which is also what the head of task i reads of this stage. It is a cross-stitch unit that mixes channels
    too.
    Source: Gao, Ma, Zhao, Liu & Yuille, CVPR 2019, arXiv:1801.08297. Deviations: all parameters
    have one learning rate, where theirs had a higher one for the layers; encoders do not start from
    single-task training; the shortcuts to the last layer are left to heads that read all stages.

    own: the weight of a task's own channels at first, in 0..1; the same channels of the other tasks share the
    rest evenly (the paper's diagonal initialisation, 0.9 and 0.1 for two tasks).

    Each task has an encoder of its own; those of all tasks must have equal channels and strides. The layer
    after the last stage serves one task, so it receives that task's own gradient.
    """

    cost: ClassVar[str] = "T trunks and T 1x1 convolutions from T C to C channels a stage"

    def __init__(self, encoder: EncoderFactory, tasks: Sequence[Task], own: float = 0.9) -> None:
        super().__init__(encoder, tasks)
        require("nddr", "own", "in 0..1", 0 <= own <= 1, own)
        self.trunk = Parallel("nddr", encoder, tasks, lambda channels, count: Fusion(channels, count, own))

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        """Return the features of ``tasks`` (None: of all); all encoders are run, since each feeds all."""
        names = self.task_names if tasks is None else tasks
        pyramids = self.trunk(x, [self.task_names.index(name) for name in names])
        return Features(dict(zip(names, pyramids, strict=True)))

    def shape(self, task: str) -> PyramidShape:
        """Return the shape of the encoder's pyramid, which fusion keeps."""
        return self.trunk.shapes[self.task_names.index(task)]

    def shared_parameters(self) -> Iterable[nn.Parameter]:
        """Return all but those of the last layer."""
        return self.trunk.shared_parameters()
