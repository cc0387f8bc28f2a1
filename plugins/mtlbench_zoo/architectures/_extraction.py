"""Customised and progressive extraction: experts of each task's own beside shared ones, in levels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from mtlbench.contracts import Architecture, Encoder, EncoderFactory, Features, Pyramid, PyramidShape, Task
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


class Extraction(Architecture):
    """Levels of experts, one after another; see the cards of `CGC` (one level) and `PLE`.

    name: of the architecture, for errors.
    """

    def __init__(
        self,
        name: str,
        encoder: EncoderFactory,
        tasks: Sequence[Task],
        task_experts: int,
        shared_experts: int,
        levels: int,
        gate: GateKind,
    ) -> None:
        super().__init__(encoder, tasks)
        require(name, "task_experts", "at least 1", task_experts >= 1, task_experts)
        require(name, "shared_experts", "at least 1", shared_experts >= 1, shared_experts)
        own = [copies(encoder, task_experts) for _ in tasks]
        shared = copies(encoder, shared_experts)
        self._shape = shared[0].shape
        channels = self._shape.channels
        rule = f"at most {len(channels)} (the number of the encoder's stages)"
        require(name, "levels", rule, levels <= len(channels), levels)
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
        self._own_names = [
            [f"{task} {number + 1}" for number in range(task_experts)] for task in self.task_names
        ]
        self._shared_names = [f"shared {number + 1}" for number in range(shared_experts)]

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        """Return the features of ``tasks`` (None: of all); of the others, only the last level is left out."""
        names = self.task_names if tasks is None else tasks
        wanted = [self.task_names.index(name) for name in names]
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
                experts = [*self._own_names[task], *self._shared_names]
                readings.append(gate_reading(place, share, self.task_names[task], experts))
            if common is not None:
                shared, share = common
                experts = [*chain.from_iterable(self._own_names), *self._shared_names]
                readings.append(gate_reading(f"{place}, to shared", share, None, experts))
        found = {name: tuple(pyramids[task]) for name, task in zip(names, wanted, strict=True)}
        return Features(found, readings=tuple(readings))

    def shape(self, task: str) -> PyramidShape:
        """Return the shape of an expert's pyramid, which mixing keeps."""
        return self._shape

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
