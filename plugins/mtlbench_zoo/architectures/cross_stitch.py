"""Cross-stitch networks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from mtlbench.contracts import Architecture, EncoderFactory, Features, PyramidShape, Reading, Task
from mtlbench_zoo.architectures._parallel import Parallel, near_identity
from mtlbench_zoo.architectures._parts import require, stage_name, weighted_sum


class Stitch(nn.Module):
    """The mixing matrix of one stage; row i, ``[T]`` or ``[C, T]``, is what task i receives."""

    def __init__(self, channels: int, tasks: int, own: float, per_channel: bool) -> None:
        super().__init__()
        self.rows = nn.ParameterList(
            row.repeat(channels, 1) if per_channel else row for row in near_identity(tasks, own)
        )

    def matrix(self) -> Tensor:
        """Return all rows, ``[T, T]`` or ``[C, T, T]``."""
        return torch.stack([*self.rows], dim=-2)

    def forward(self, features: Sequence[Tensor], receiver: int) -> Tensor:
        """Return what the encoder of task ``receiver`` goes on from."""
        row = self.rows[receiver].to(features[0].dtype)
        return weighted_sum(features, [weight.view(-1, 1, 1) for weight in row.unbind(-1)])


class CrossStitch(Architecture):
    """Cross-stitch networks: one encoder a task; their features are mixed linearly after every stage.

    With ``f_j`` what the encoder of task j gives at stage s, the encoder of task i goes on from

        ``sum_j A_s[i, j] f_j``,   ``A_s``: ``[T, T]``, learned,

    which is also what the head of task i reads of this stage.
    Source: Misra, Shrivastava, Gupta & Hebert, CVPR 2016, arXiv:1604.03539, eq. 1. Deviations: units follow
    every stage, where theirs follow poolings and wide layers of an AlexNet; all parameters have one learning
    rate, where theirs had a higher one for the units; encoders do not start from single-task training.

    own: what a task's own features count at first, in 0..1; the other tasks share the rest evenly. The paper
    finds 0.9 and 0.1 best for its two tasks. per_channel: one matrix a channel, as in the paper, instead of
    one a stage.

    Each task has an encoder of its own; those of all tasks must have equal channels and strides. A row of the
    last matrix serves one task, so it receives that task's own gradient; gradient weightings act on the rest.
    """

    cost: ClassVar[str] = "T trunks and a T x T matrix a stage"

    def __init__(
        self, encoder: EncoderFactory, tasks: Sequence[Task], own: float = 0.9, per_channel: bool = False
    ) -> None:
        super().__init__(encoder, tasks)
        require("cross-stitch", "own", "in 0..1", 0 <= own <= 1, own)
        self.trunk = Parallel(
            "cross-stitch", encoder, tasks, lambda channels, count: Stitch(channels, count, own, per_channel)
        )

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        """Return the features of ``tasks`` (None: of all); all encoders are run, since each feeds all."""
        names = self.task_names if tasks is None else tasks
        pyramids = self.trunk(x, [self.task_names.index(name) for name in names])
        readings = (
            Reading("mixing", stage_name(index), unit.matrix().detach(), names=self.task_names)
            for index, unit in enumerate(self.trunk.units)
        )
        return Features(dict(zip(names, pyramids, strict=True)), readings=tuple(readings))

    def shape(self, task: str) -> PyramidShape:
        """Return the shape of the encoder's pyramid, which mixing keeps."""
        return self.trunk.shapes[self.task_names.index(task)]

    def shared_parameters(self) -> Iterable[nn.Parameter]:
        """Return all but the last matrix."""
        return self.trunk.shared_parameters()
