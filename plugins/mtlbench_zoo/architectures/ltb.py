"""Learning to branch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from mtlbench.contracts import Architecture, EncoderFactory, Features, Pyramid, PyramidShape, Reading, Task
from mtlbench_zoo.architectures._parts import (
    copies,
    gate_reading,
    require,
    sample_one,
    stage_name,
    weighted_sum,
)


class LTB(Architecture):
    """Learning to branch: a tree of stages, whose branches are learned.

    Every stage has several nodes, copies of that stage of the encoder. A node chooses one node of the stage
    before as its parent, and a task chooses one node of the last stage; all nodes of the first stage read
    the input. A choice has the probabilities ``softmax(theta)``, with theta learned and 0 at first. In
    training, each step samples all choices; their gradients are those of the Gumbel-softmax relaxation

        ``softmax((theta + noise) / tau)``,   ``tau = temperature / sqrt(epoch)``, epochs counted from 1.

    In eval mode every choice is the most probable one, and only the nodes that lead to a task that is asked
    for are run. The head of a task reads the nodes on the task's path.
    Source: Guo, Lee & Ulbricht, ICML 2020, arXiv:2006.01895. Deviations: the tree and its weights
    are learned in one run and used as they are; the paper trains the weights of the tree that it found once
    more from the start. There is no warm-up: with theta = 0 all trees are equally likely anyway.

    nodes: how many a stage has, at least 2; none: one a task, at least 2. temperature: of the first epoch,
    above 0; 10 is what LibMTL takes for 200 epochs.

    What a task chooses for itself receives that task's own gradient; gradient weightings act on the nodes
    and on what they choose.
    """

    cost: ClassVar[str] = "`nodes` trunks to train; at most T, as far as paths differ, to use"

    _tau: Tensor

    def __init__(
        self,
        encoder: EncoderFactory,
        tasks: Sequence[Task],
        nodes: int | None = None,
        temperature: float = 10.0,
    ) -> None:
        super().__init__(encoder, tasks)
        nodes = max(2, len(tasks)) if nodes is None else nodes
        require("ltb", "nodes", "at least 2", nodes > 1, nodes, "with one node a stage use 'hps'")
        require("ltb", "temperature", "above 0 and finite", 0 < temperature < math.inf, temperature)
        self.temperature = temperature
        # A tensor, because torch.compile would take a number for a constant and compile every epoch anew.
        self.register_buffer("_tau", torch.tensor(float(temperature)), persistent=False)
        self.nodes = copies(encoder, nodes)
        self._shape = self.nodes[0].shape
        self._names = [f"branch{number + 1}" for number in range(nodes)]
        stages = len(self._shape.channels)
        self.parents = nn.ParameterList(torch.zeros(nodes, nodes) for _ in range(stages - 1))
        # A list, because the name of a task need not be fit for the name of a parameter.
        self.leaves = nn.ParameterList(torch.zeros(nodes) for _ in tasks)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Lower the temperature."""
        self._tau.fill_(self.temperature / math.sqrt(epoch + 1))

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        """Return the features of ``tasks`` (None: of all); in training all nodes are run."""
        names = self.task_names if tasks is None else tasks
        leaves = [self.leaves[self.task_names.index(name)] for name in names]
        found = self._sampled(x, leaves) if self.training else self._chosen(x, leaves)
        pyramids, readings = {}, []
        for name, (pyramid, path) in zip(names, found, strict=True):
            pyramids[name] = pyramid
            readings += self._readings(name, path, len(x))
        return Features(pyramids, readings=tuple(readings))

    def shape(self, task: str) -> PyramidShape:
        """Return the shape of the encoder's pyramid."""
        return self._shape

    def shared_parameters(self) -> Iterable[nn.Parameter]:
        """Return all but what a task chooses for itself."""
        yield from self.nodes.parameters()
        yield from self.parents.parameters()

    def _sampled(self, x: Tensor, leaves: Sequence[Tensor]) -> list[tuple[Pyramid, list[Tensor]]]:
        """Return for each task the levels on a sampled path, and the path: one-hot ``[nodes]`` a stage."""
        choices = [sample_one(logits, self._tau) for logits in self.parents]
        levels = [[node.stages[0](x) for node in self.nodes]]
        for index, choice in enumerate(choices, start=1):
            given = [weighted_sum(levels[-1], row.unbind()) for row in choice]
            levels.append(
                [node.stages[index](stream) for node, stream in zip(self.nodes, given, strict=True)]
            )
        found = []
        for leaf in leaves:
            path = [sample_one(leaf, self._tau)]
            for choice in reversed(choices):
                path.insert(0, path[0] @ choice)
            found.append((tuple(map(weighted_sum, levels, [weights.unbind() for weights in path])), path))
        return found

    def _chosen(self, x: Tensor, leaves: Sequence[Tensor]) -> list[tuple[Pyramid, list[Tensor]]]:
        """Return for each task the levels on its most probable path, and the path."""
        known: dict[tuple[int, ...], Tensor] = {}
        eye = torch.eye(len(self.nodes), device=x.device)
        found = []
        for leaf in leaves:
            path = [int(leaf.argmax())]
            for logits in reversed(self.parents):
                path.insert(0, int(logits[path[0]].argmax()))
            stream, pyramid = x, []
            for index, node in enumerate(path):
                trace = tuple(path[: index + 1])
                if trace not in known:
                    known[trace] = self.nodes[node].stages[index](stream)
                stream = known[trace]
                pyramid.append(stream)
            found.append((tuple(pyramid), [eye[node] for node in path]))
        return found

    def _readings(self, task: str, path: Sequence[Tensor], batch: int) -> list[Reading]:
        return [
            gate_reading(stage_name(index), weights.expand(batch, -1), task, self._names)
            for index, weights in enumerate(path)
        ]
