"""Customised gate control."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from torch import Tensor, nn

from mtlbench.contracts import Architecture, EncoderFactory, Features, PyramidShape, Task
from mtlbench_zoo.architectures._extraction import Extraction
from mtlbench_zoo.architectures._parts import GateKind


class CGC(Architecture):
    """Customised gate control: every task mixes experts of its own with shared experts.

    The experts are encoders. With ``f_e[s]`` the features of expert e at stage s, task t receives at every
    stage

        ``sum_e g_te f_e[s]``,   ``g_t = softmax(W_t v_t + b_t)``,

    where e runs over the task's own and the shared experts, and ``v_t`` is what these gave at the last
    stage, averaged over space and joined.
    Source: Tang, Liu, Zhao & Gong, RecSys 2020, section 4. Deviations: their gate reads the input vector;
    for images that would be raw pixels, so here it reads what the experts saw in them. All stages are
    mixed, because maps are decoded from all of them.

    task_experts: experts a task, at least 1. shared_experts: at least 1. gate: "softmax", or "context" as in
    mmoe.

    A gate and a task's experts serve one task, so they receive that task's own gradient; gradient weightings
    act on the shared experts.
    """

    cost: ClassVar[str] = "T x `task_experts` + `shared_experts` trunks and T small gates"

    def __init__(
        self,
        encoder: EncoderFactory,
        tasks: Sequence[Task],
        task_experts: int = 1,
        shared_experts: int = 1,
        gate: GateKind = "softmax",
    ) -> None:
        super().__init__(encoder, tasks)
        self.layers = Extraction("cgc", encoder, self.task_names, task_experts, shared_experts, 1, gate)

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        """Return the features of ``tasks`` (None: of all); only their own and the shared experts are run."""
        names = self.task_names if tasks is None else tasks
        pyramids, readings = self.layers(x, [self.task_names.index(name) for name in names])
        return Features(dict(zip(names, pyramids, strict=True)), readings=tuple(readings))

    def shape(self, task: str) -> PyramidShape:
        """Return the shape of an expert's pyramid, which mixing keeps."""
        return self.layers.shape

    def shared_parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters of the shared experts."""
        return self.layers.shared_parameters()
