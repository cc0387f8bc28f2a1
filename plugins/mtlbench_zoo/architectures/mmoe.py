"""Multi-gate mixture of experts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import ClassVar, Generic, Literal

from torch import Tensor, nn
from torch.nn import functional

from mtlbench.contracts import (
    Architecture,
    Encoder,
    EncoderFactory,
    Features,
    Pyramid,
    PyramidShape,
    Reading,
    Task,
)
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.architectures._parts import (
    Gate,
    GateKind,
    M,
    Modules,
    gate_reading,
    mix,
    mix_levels,
    pool,
    require,
    run,
    stage_name,
)

Seen = tuple[list[Pyramid], list[Reading]]


class MMoE(Architecture):
    """Multi-gate mixture of experts: every task mixes the features of all experts with a gate of its own.

    The experts are encoders. With ``f_e[s]`` the features of expert e at stage s and v the last stages of all
    experts, averaged over space and joined, task t receives at every stage

        ``sum_e g_te f_e[s]``,   ``g_t = softmax(W_t v + b_t)``,   ``[B, experts]``.

    Source: Ma, Zhao, Yi, Chen, Hong & Chi, KDD 2018, eq. 6-7. Deviations: their gate reads the input
    vector; for images that would be raw pixels, so here it reads what the experts saw in them. All
    stages are mixed, because maps are decoded from all of them.

    experts: how many, at least 2 (one would be hps); the paper used 8 small ones. "per-task": one a task, as
    told below. gate: "softmax" as above; "context" lets the features gate themselves before, each gate with
    weights of its own: ``v * sigmoid(U_t v + c_t)`` takes the place of v (context gating of Miech, Laptev &
    Sivic, 2017, arXiv:1706.06905, eq. 3). Gates start almost uniform. share_at: after which stages experts
    are mixed: numbers from 1, names such as "stage2", or "last".

    Sharing points: a gate reads what all experts gave at the sharing point, averaged over space and joined.
    After the last point, each task goes on from its mixture through stages of its own (none if it is the
    last stage); the head also reads the earlier stages, mixed by that same gate. After an earlier point,
    each expert goes on from a mixture with a gate of its own.

    With experts="per-task", expert t belongs to task t: it goes on from t's mixture after every sharing
    point, and it gives the stages that are not mixed. Experts may then be different encoders: what another
    expert gives is brought to t's channels by a 1x1 convolution and to t's size by bilinear interpolation,
    where they differ.

    A gate, a convolution or a stage that serves one task receives that task's own gradient; gradient
    weightings act on what lies before the last sharing point.
    """

    cost: ClassVar[str] = "`experts` trunks and T small gates"

    def __init__(
        self,
        encoder: EncoderFactory,
        tasks: Sequence[Task],
        experts: int | Literal["per-task"] = 3,
        gate: GateKind = "softmax",
        share_at: Sequence[int | str] = ("last",),
    ) -> None:
        super().__init__(encoder, tasks)
        self.layer: _Common | _PerTask
        if isinstance(experts, str):
            require(
                "mmoe", "the number of tasks with experts=per-task", "at least 2", len(tasks) > 1, len(tasks)
            )
            self.layer = _PerTask(encoder, self.task_names, gate, share_at)
        else:
            require("mmoe", "experts", "at least 2", experts > 1, experts, "with one expert use 'hps'")
            self.layer = _Common(encoder, self.task_names, experts, gate, share_at)

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        """Return the features of ``tasks`` (None: of all); only these are mixed."""
        names = self.task_names if tasks is None else tasks
        pyramids, readings = self.layer(x, [self.task_names.index(name) for name in names])
        return Features(dict(zip(names, pyramids, strict=True)), readings=tuple(readings))

    def shape(self, task: str) -> PyramidShape:
        """Return the shape of an expert's pyramid (of the task's own expert), which mixing keeps."""
        return self.layer.shapes[self.task_names.index(task)]

    def shared_parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters that lie before the last sharing point."""
        return self.layer.before.parameters()


class _Before(nn.Module, Generic[M]):
    """What lies before the last sharing point: the experts' stages, and the earlier points. It serves all."""

    def __init__(self, experts: Sequence[nn.ModuleList], points: Sequence[M]) -> None:
        super().__init__()
        self.experts: Modules[nn.ModuleList] = Modules(experts)
        self.points: Modules[M] = Modules(points)


class _Common(nn.Module):
    """Experts that belong to no task; after the last sharing point a tower for each task."""

    def __init__(
        self,
        encoder: EncoderFactory,
        names: Sequence[str],
        experts: int,
        gate: GateKind,
        share_at: Sequence[int | str],
    ) -> None:
        super().__init__()
        self.task_names = names
        self.experts = [f"expert{number + 1}" for number in range(experts)]
        made = [encoder() for _ in range(experts)]
        self.shapes = [made[0].shape] * len(names)
        self.points = _points(share_at, len(made[0].stages))
        after = self.points[-1] + 1
        widths = {point: experts * made[0].shape.channels[point] for point in self.points}

        def gates(point: int, count: int) -> Modules[Gate]:
            return Modules(Gate(widths[point], experts, gate) for _ in range(count))

        self.before = _Before(
            [expert.stages[:after] for expert in made],
            [gates(point, experts) for point in self.points[:-1]],
        )
        # Lists, because the name of a task need not be fit for the name of a module.
        self.gates = gates(self.points[-1], len(names))
        self.towers: Modules[nn.ModuleList] = Modules()
        if after < len(made[0].stages):
            self.towers.extend(encoder(name).stages[after:] for name in names)

    def forward(self, x: Tensor, wanted: Sequence[int]) -> Seen:
        """Return the pyramids of the tasks whose indices are ``wanted``, and what is to be seen of gates."""
        streams = [x] * len(self.experts)
        seen: list[list[Tensor]] = [[] for _ in streams]
        readings = []
        for number, (start, point) in enumerate(pairwise([-1, *self.points])):
            for levels, stages, stream in zip(seen, self.before.experts, streams, strict=True):
                levels += run(stages[start + 1 : point + 1], stream)
            given = [levels[-1] for levels in seen]
            pooled = pool(given)
            if number < len(self.points) - 1:
                shares = [gate(pooled) for gate in self.before.points[number]]
                streams = [mix(given, share) for share in shares]
                readings += [
                    gate_reading(f"{stage_name(point)}, to {expert}", share, None, self.experts)
                    for expert, share in zip(self.experts, shares, strict=True)
                ]
        pyramids = []
        for task in wanted:
            share = self.gates[task](pooled)
            readings.append(gate_reading(stage_name(point), share, self.task_names[task], self.experts))
            mixed = mix_levels(seen, share)
            pyramids.append((*mixed, *run(self.towers[task], mixed[-1])) if len(self.towers) else mixed)
        return pyramids, readings


class _PerTask(nn.Module):
    """One expert a task, possibly of different kinds, each with its own list of sharing points."""

    def __init__(
        self, encoder: EncoderFactory, names: Sequence[str], gate: GateKind, share_at: Sequence[int | str]
    ) -> None:
        super().__init__()
        self.task_names = names
        made = [encoder(name) for name in names]
        self.shapes = [expert.shape for expert in made]
        self.points = [_points(share_at, len(expert.stages)) for expert in made]
        mixers = [_Mixer(made, stages, gate) for stages in zip(*self.points, strict=True)]
        self.before = _Before(
            [expert.stages[: points[-1] + 1] for expert, points in zip(made, self.points, strict=True)],
            mixers[:-1],
        )
        self.mixer = mixers[-1]
        self.towers: Modules[nn.ModuleList] = Modules(
            expert.stages[points[-1] + 1 :] for expert, points in zip(made, self.points, strict=True)
        )

    def forward(self, x: Tensor, wanted: Sequence[int]) -> Seen:
        """Return the pyramids of the tasks whose indices are ``wanted``, and what is to be seen of gates."""
        everyone = range(len(self.task_names))
        streams = [x for _ in everyone]
        seen: list[list[Tensor]] = [[] for _ in everyone]
        readings = []
        for number, mixer in enumerate([*self.before.points, self.mixer]):
            for task in everyone:
                start = self.points[task][number - 1] + 1 if number else 0
                stages = self.before.experts[task][start : self.points[task][number] + 1]
                seen[task] += run(stages, streams[task])
            given = [levels[-1] for levels in seen]
            pooled = pool(given)
            for task in wanted if mixer is self.mixer else everyone:
                streams[task], share = mixer(given, pooled, task)
                seen[task][-1] = streams[task]
                place = stage_name(self.points[task][number])
                readings.append(gate_reading(place, share, self.task_names[task], self.task_names))
        pyramids = [(*seen[task], *run(self.towers[task], streams[task])) for task in wanted]
        return pyramids, readings


class _Mixer(nn.Module):
    """What happens at one sharing point of experts that may differ.

    encoders: all experts. stages: the index of the stage of each that is mixed.
    """

    def __init__(self, encoders: Sequence[Encoder], stages: Sequence[int], gate: GateKind) -> None:
        super().__init__()
        widths = [expert.shape.channels[stage] for expert, stage in zip(encoders, stages, strict=True)]
        self.gates: Modules[Gate] = Modules(Gate(sum(widths), len(widths), gate) for _ in widths)
        self.converters: Modules[nn.ModuleList] = Modules(
            nn.ModuleList(nn.Identity() if own == width else nn.Conv2d(width, own, 1) for width in widths)
            for own in widths
        )

    def forward(self, given: Sequence[Tensor], pooled: Tensor, task: int) -> tuple[Tensor, Tensor]:
        """Return the mixture that ``task`` receives, shaped as its own expert's features, and its gate."""
        share = self.gates[task](pooled)
        size = given[task].shape[2:]
        fitting = []
        for feature, convert in zip(given, self.converters[task], strict=True):
            converted = convert(feature)
            if converted.shape[2:] != size:
                converted = functional.interpolate(converted, size=size, mode="bilinear", align_corners=False)
            fitting.append(converted)
        return mix(fitting, share), share


def _points(share_at: Sequence[int | str], stages: int) -> list[int]:
    """Return the indices of the stages that ``share_at`` names, in their order."""
    known = {"last": stages - 1} | {stage_name(index): index for index in range(stages)}
    known |= {str(index + 1): index for index in range(stages)}
    for named in share_at:
        if str(named) not in known:
            raise MtlbenchError(
                f"architecture 'mmoe': share_at must name stages of the encoder, found {named!r}; it has the "
                f"stages 1 to {stages}"
            )
    require("mmoe", "share_at", "a list of one stage or more", bool(share_at), list(share_at))
    points = sorted(known[str(named)] for named in share_at)
    if len(set(points)) < len(points):
        raise MtlbenchError(
            f"architecture 'mmoe': share_at={list(share_at)} names one stage twice in an encoder of {stages} "
            "stages; leave one of the two out"
        )
    return points
