"""Progressive layered extraction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from mtlbench.contracts import EncoderFactory, Task
from mtlbench_zoo.architectures._extraction import Extraction
from mtlbench_zoo.architectures._parts import GateKind, require


class PLE(Extraction):
    """Progressive layered extraction: levels of task experts and shared experts, with gates between them.

    The encoder's stages are cut into levels of almost equal length. In each level a task has experts that
    read the task's stream, and there are shared experts that read the shared stream; all streams start as
    the input. Then, as in cgc,

    - the stream of task t goes on as the mixture of its own and the shared experts, with the task's gate;
    - the shared stream goes on as the mixture of all experts of all tasks and the shared ones, with the
      shared gate (none after the last level).

    A gate is ``softmax(W v + b)`` of the stream that its level reads, averaged over space; in the first level
    v is what the gate's experts gave at the end of the level, since the stream is raw pixels there. The head
    of task t reads every stage as the gate of its level mixes it.
    Source: Tang, Liu, Zhao & Gong, RecSys 2020, section 4. Deviations: levels are an encoder's
    stages; the first gates look as told.

    levels: how many, from 2 (one would be cgc) to the number of the encoder's stages. task_experts: experts a
    task in each level, at least 1. shared_experts: at least 1. gate: "softmax", or "context" as in mmoe.

    What serves one task (its experts in the last level, its gates in the last two) receives that task's own
    gradient; gradient weightings act on the rest.
    """

    cost: ClassVar[str] = "T x `task_experts` + `shared_experts` trunks and T + 1 small gates a level"

    def __init__(
        self,
        encoder: EncoderFactory,
        tasks: Sequence[Task],
        levels: int = 2,
        task_experts: int = 1,
        shared_experts: int = 1,
        gate: GateKind = "softmax",
    ) -> None:
        require("ple", "levels", "at least 2", levels > 1, levels, "with one level use 'cgc'")
        super().__init__("ple", encoder, tasks, task_experts, shared_experts, levels, gate)
