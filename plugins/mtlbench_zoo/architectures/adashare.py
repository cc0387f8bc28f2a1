"""AdaShare: what to share, learned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtlbench.contracts import Architecture, EncoderFactory, Features, Pyramid, PyramidShape, Task
from mtlbench_zoo.architectures._parts import (
    Modules,
    gate_reading,
    pool_to,
    require,
    run,
    stage_name,
    weighted_sum,
)

COOLING = 300.0
"""How much colder sampling is in the end than at first; the original has 160 times a factor of 0.965."""

PACE = 10.0
"""How many times the parameters the logits of the choices are, so that Adam moves them that much faster."""


class AdaShare(Architecture):
    """AdaShare: one encoder, and for each task and stage the learned choice whether to run or to skip it.

    Task t runs stage l with the probability ``p_tl = sigmoid(z_tl)``, z learned and 0 at first. In training
    its stream goes on as

        ``v F_l(x) + (1 - v) S_l(x)``,   ``v = sigmoid((z_tl + G - G') / tau)``,

    with F the stage, S a shortcut and G, G' Gumbel noise, drawn anew in each step. In eval mode a task runs
    the stages with ``p >= 1/2`` and takes the shortcut past the others. Tasks share the stages that both run.
    Added to the objective are

        ``sparsity sum_tl log p_tl  +  sharing sum_(t<u) sum_l (L - l)/L |p_tl - p_ul|``.

    At first all tasks run all stages. Then choices are learned from the last stage on, one stage more at a
    time, while tau falls exponentially, to a 300th in the end.
    Source: Sun, Panda, Feris & Saenko, NeurIPS 2020, arXiv:1911.12423. Deviations: an encoder's stages are
    chosen, where theirs are residual blocks; the first stage, which reads the image, is always run. S is
    max pooling to the stage's size, and a 1x1 convolution with batch norm and ReLU where channels change;
    theirs is the block's own shortcut, which v F is added to. Weights and choices are learned in the same
    steps, and the network is used as it is then; the paper takes turns, and trains the network that it found
    once more from the start.

    sparsity, sharing: weights of the two terms, at least 0 (the original's for three tasks on NYUv2).
    warm_up: the share of the epochs in which all is shared, in 0..1. curriculum: the share after that in
    which one stage after the other is added, in 0..1. temperature: tau of the first choices, above 0 (as the
    original).

    A choice serves one task, so it receives that task's own gradient; gradient weightings act on encoder and
    shortcuts. z is ten times a parameter, which under Adam is ten times the run's learning rate, as in the
    original; in a run of a few epochs choices still hardly leave 1/2, and what is trained is hard sharing.
    """

    cost: ClassVar[str] = "1 trunk in the warm-up, then up to T; to use at most T, as far as choices differ"

    _tau: Tensor

    def __init__(
        self,
        encoder: EncoderFactory,
        tasks: Sequence[Task],
        sparsity: float = 0.001,
        sharing: float = 0.05,
        warm_up: float = 0.2,
        curriculum: float = 0.3,
        temperature: float = 5.0,
    ) -> None:
        super().__init__(encoder, tasks)
        name = "adashare"
        require(name, "sparsity", "at least 0 and finite", 0 <= sparsity < math.inf, sparsity)
        require(name, "sharing", "at least 0 and finite", 0 <= sharing < math.inf, sharing)
        require(name, "warm_up", "in 0..1", 0 <= warm_up <= 1, warm_up)
        require(name, "curriculum", "in 0..1", 0 <= curriculum <= 1, curriculum)
        require(name, "temperature", "above 0 and finite", 0 < temperature < math.inf, temperature)
        self.sparsity, self.sharing = sparsity, sharing
        self.warm_up, self.curriculum = warm_up, curriculum
        self.temperature = temperature
        # A tensor, because torch.compile would take a number for a constant and compile every epoch anew.
        self.register_buffer("_tau", torch.tensor(float(temperature)), persistent=False)
        self.encoder = encoder()
        self._shape = self.encoder.shape
        channels, strides = self._shape.channels, self._shape.strides
        stages = len(channels)
        require(name, "the number of the encoder's stages", "at least 2", stages > 1, stages)
        self._ratios = [after // before for before, after in pairwise(strides)]
        self.skips: Modules[nn.Sequential] = Modules(_shortcut(*pair) for pair in pairwise(channels))
        # A list, because the name of a task need not be fit for the name of a parameter.
        self.choices = nn.ParameterList(torch.zeros(stages - 1) for _ in tasks)
        self._learned = stages - 1

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Set how many stages, counted from the last, are a choice in this epoch, and how cold it is."""
        most, past = len(self.skips), epoch / epochs - self.warm_up
        if past < 0:
            self._learned = 0
            return
        added = past / self.curriculum if self.curriculum else 1.0
        self._learned = min(most, 1 + int(most * added))
        self._tau.fill_(self.temperature * COOLING ** (-past / (1 - self.warm_up)))

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        """Return the features of ``tasks`` (None: of all), and the two regularisers as penalty."""
        names = self.task_names if tasks is None else tasks
        choices = [PACE * self.choices[self.task_names.index(name)] for name in names]
        pyramids = self._mixed(x, choices) if self.training else self._chosen(x, choices)
        readings = [
            gate_reading(stage_name(index), torch.stack([p, 1 - p]).expand(len(x), 2), name, ("run", "skip"))
            for name, choice in zip(names, choices, strict=True)
            for index, p in enumerate(torch.sigmoid(choice.detach()), start=1)
        ]
        return Features(dict(zip(names, pyramids, strict=True)), None, self._penalty(), tuple(readings))

    def shape(self, task: str) -> PyramidShape:
        """Return the shape of the encoder's pyramid, which shortcuts keep."""
        return self._shape

    def shared_parameters(self) -> Iterable[nn.Parameter]:
        """Return all but the choices."""
        yield from self.encoder.parameters()
        yield from self.skips.parameters()

    def _mixed(self, x: Tensor, choices: Sequence[Tensor]) -> list[Pyramid]:
        """Return for each choice the levels mixed by sampled shares; what is no choice yet is run once."""
        fixed = len(self.encoder.stages) - self._learned
        common = run(self.encoder.stages[:fixed], x)
        pyramids = []
        for choice in choices:
            pyramid = list(common)
            noise = torch.logit(torch.rand_like(choice), eps=1e-7)  # the difference of two Gumbel draws
            shares = torch.sigmoid((choice + noise) / self._tau)
            for index in range(fixed, len(self.encoder.stages)):
                given = self.encoder.stages[index](pyramid[-1])
                skipped = self._skip(index, pyramid[-1], given.shape[2:])
                share = shares[index - 1].to(given.dtype)
                pyramid.append(weighted_sum([given, skipped], [share, 1 - share]))
            pyramids.append(tuple(pyramid))
        return pyramids

    def _chosen(self, x: Tensor, choices: Sequence[Tensor]) -> list[Pyramid]:
        """Return for each choice the levels on its most probable path; what paths share is run once."""
        known: dict[tuple[bool, ...], Tensor] = {(): self.encoder.stages[0](x)}
        pyramids = []
        for choice in choices:
            path = tuple((choice >= 0).tolist())
            for index, wanted in enumerate(path, start=1):
                trace, before = path[:index], known[path[: index - 1]]
                if trace not in known and wanted:
                    known[trace] = self.encoder.stages[index](before)
                elif trace not in known:
                    known[trace] = self._skip(index, before, self._size(index, before))
            pyramids.append(tuple(known[path[:index]] for index in range(len(path) + 1)))
        return pyramids

    def _skip(self, index: int, x: Tensor, size: Sequence[int]) -> Tensor:
        skipped: Tensor = self.skips[index - 1](pool_to(x, size))
        return skipped

    def _size(self, index: int, x: Tensor) -> Sequence[int]:
        """Return the size of what the stage at ``index`` gives for ``x``."""
        ratio = self._ratios[index - 1]
        if all(side % ratio == 0 for side in x.shape[2:]):
            return [side // ratio for side in x.shape[2:]]
        given: Tensor = self.encoder.stages[index](x)  # only the stage knows how it rounds
        return given.shape[2:]

    def _penalty(self) -> Tensor | None:
        """Return the regularisers of what is a choice in this epoch; None where there are none."""
        if not (self._learned and (self.sparsity or self.sharing)):
            return None
        logits = PACE * torch.stack(list(self.choices))[:, -self._learned :]
        total = self.sparsity * functional.logsigmoid(logits).sum()
        if len(self.choices) > 1:
            stages = len(self.encoder.stages)
            early = [(stages - 1 - index) / stages for index in range(stages - self._learned, stages)]
            pairs = torch.stack([(p - q).abs() for p, q in combinations(torch.sigmoid(logits), 2)])
            total = total + self.sharing * (pairs * pairs.new_tensor(early)).sum()
        return total


def _shortcut(inputs: int, outputs: int) -> nn.Sequential:
    """Return what fits the channels: nothing where they are equal."""
    if inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )
