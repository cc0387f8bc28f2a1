"""Single-task learning: nothing is shared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from torch import Tensor, nn

from mtlbench.contracts import Architecture, Encoder, EncoderFactory, Features, PyramidShape, Task


class SingleTask(Architecture):
    """One encoder a task: the baseline that sharing has to beat.

    Every parameter serves one task only, so `shared_parameters` is empty: each encoder is treated like the
    head of its task and receives that task's own gradient; a gradient weighting has nothing to act on.
    """

    cost: ClassVar[str] = "T trunks, one a task"

    def __init__(self, encoder: EncoderFactory, tasks: Sequence[Task]) -> None:
        super().__init__(encoder, tasks)
        # A list, because the name of a task need not be fit for the name of a module.
        self.encoders = nn.ModuleList(encoder(task.name) for task in tasks)

    def _encoder(self, task: str) -> Encoder:
        found = self.encoders[self.task_names.index(task)]
        assert isinstance(found, Encoder)
        return found

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        """Return the features of ``tasks`` (None: of all); only their encoders are run."""
        names = self.task_names if tasks is None else tasks
        return Features({name: self._encoder(name)(x) for name in names})

    def shape(self, task: str) -> PyramidShape:
        """Return the shape of the encoder's pyramid."""
        return self._encoder(task).shape

    def shared_parameters(self) -> Iterable[nn.Parameter]:
        """Return nothing."""
        return ()
