"""Customised gate control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from mtlbench.contracts import EncoderFactory, Task
from mtlbench_zoo.architectures._extraction import Extraction
from mtlbench_zoo.architectures._parts import GateKind


class CGC(Extraction):
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
        super().__init__("cgc", encoder, tasks, task_experts, shared_experts, levels=1, gate=gate)
