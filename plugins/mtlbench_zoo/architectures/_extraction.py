"""Customised and progressive extraction: experts of each task's own beside shared ones, in levels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from mtlbench.contracts import Encoder, EncoderFactory, Pyramid, Reading
from mtlbench_zoo.architectures._parts import (
    Gate,
    GateKind,
    Modules,
    copies,
    gate_reading,
    mix,
    mix_levels,
    pool,
    require,
    run,
    stage_name,
)


class Level(nn.Module):
    """Experts that are encoders' stages ``start..stop``, and the gates that mix what they give.

    tasks: number of task gates. own: number of experts a task. width: channels of the stream that the level
    reads, on which its gates look; None in the first level, whose gates look at what their experts gave.
    """

    def __init__(
        self,
        own: Sequence[Modules[Encoder]],
        shared: Modules[Encoder],
        stages: range,
        channels: int,
        width: int | None,
        gate: GateKind,
        final: bool,
    ) -> None:
        super().__init__()

        def block(column: Encoder) -> nn.ModuleList:
            return nn.ModuleList(column.stages[index] for index in stages)

        def make_gate(experts: int) -> Gate:
            return Gate(experts * channels if width is None else width, experts, gate)

        self.stages, self.first = stages, width is None
        self.own: Modules[Modules[nn.ModuleList]] = Modules(Modules(map(block, columns)) for columns in own)
        self.shared: Modules[nn.ModuleList] = Modules(map(block, shared))
        # A list, because the name of a task need not be fit for the name of a module.
        self.gates: Modules[Gate] = Modules(make_gate(len(columns) + len(shared)) for columns in own)
        self.shared_gate = None if final else make_gate(sum(map(len, own)) + len(shared))

    def forward(
        self, streams: Sequence[Tensor], shared: Tensor, wanted: Sequence[int]
    ) -> tuple[dict[int, tuple[Pyramid, Tensor]], tuple[Tensor, Tensor] | None]:
        """Return for each of ``wanted`` its mixed stages and its gate; and the shared stream and its gate.

        streams: one a task. In the final level there is no shared stream; before, all tasks are wanted.
        """
        common = [run(stages, shared) for stages in self.shared]
        own = {task: [run(stages, streams[task]) for stages in self.own[task]] for task in wanted}
        given = {}
        for task in wanted:
            seen = own[task] + common
            share = self.gates[task](self._look(seen, streams[task]))
            given[task] = mix_levels(seen, share), share
        if self.shared_gate is None:
            return given, None
        seen = [*chain.from_iterable(own.values()), *common]
        share = self.shared_gate(self._look(seen, shared))
        return given, (mix([levels[-1] for levels in seen], share), share)

    def _look(self, seen: Sequence[Sequence[Tensor]], stream: Tensor) -> Tensor:
        return pool([levels[-1] for levels in seen] if self.first else [stream])


class Extraction(nn.Module):
    """Levels of experts, one after another; see the cards of `CGC` (one level) and `PLE`."""

    def __init__(
        self,
        architecture: str,
        encoder: EncoderFactory,
        names: Sequence[str],
        task_experts: int,
        shared_experts: int,
        levels: int,
        gate: GateKind,
    ) -> None:
        super().__init__()
        require(architecture, "task_experts", "at least 1", task_experts >= 1, task_experts)
        require(architecture, "shared_experts", "at least 1", shared_experts >= 1, shared_experts)
        self.task_names = names
        own = [copies(encoder, task_experts) for _ in names]
        shared = copies(encoder, shared_experts)
        self.shape = shared[0].shape
        channels = self.shape.channels
        rule = f"at most {len(channels)} (the number of the encoder's stages)"
        require(architecture, "levels", rule, levels <= len(channels), levels)
        blocks = [range(int(part[0]), int(part[-1]) + 1) for part in _split(len(channels), levels)]
        self.levels: Modules[Level] = Modules(
            Level(
                own,
                shared,
                stages,
                channels[stages[-1]],
                channels[stages[0] - 1] if stages[0] else None,
                gate,
                final=stages is blocks[-1],
            )
            for stages in blocks
        )
        self.own_names = [[f"{name} {number + 1}" for number in range(task_experts)] for name in names]
        self.shared_names = [f"shared {number + 1}" for number in range(shared_experts)]

    def forward(self, x: Tensor, wanted: Sequence[int]) -> tuple[list[Pyramid], list[Reading]]:
        """Return the pyramids of the tasks whose indices are ``wanted``, and what is to be seen of gates."""
        everyone = range(len(self.task_names))
        streams, shared = [x for _ in everyone], x
        pyramids: list[list[Tensor]] = [[] for _ in everyone]
        readings = []
        for level in self.levels:
            given, common = level(streams, shared, wanted if level is self.levels[-1] else everyone)
            place = stage_name(level.stages[-1])
            for task, (mixed, share) in given.items():
                streams[task] = mixed[-1]
                pyramids[task] += mixed
                names = [*self.own_names[task], *self.shared_names]
                readings.append(gate_reading(place, share, self.task_names[task], names))
            if common is not None:
                shared, share = common
                names = [*chain.from_iterable(self.own_names), *self.shared_names]
                readings.append(gate_reading(f"{place}, to shared", share, None, names))
        return [tuple(pyramids[task]) for task in wanted], readings

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield what serves all tasks.

        Up to the last level but one, what a task's experts give also flows into the shared stream. What a
        task's gate gives does so one level later, through the experts that read it.
        """
        for index, level in enumerate(self.levels):
            yield from level.shared.parameters()
            if level.shared_gate is not None:
                yield from level.shared_gate.parameters()
                yield from level.own.parameters()
            if index < len(self.levels) - 2:
                yield from level.gates.parameters()


def _split(stages: int, levels: int) -> tuple[Tensor, ...]:
    """Return the stages' indices in ``levels`` runs of almost equal length, the longer ones first."""
    return torch.tensor_split(torch.arange(stages), levels)
