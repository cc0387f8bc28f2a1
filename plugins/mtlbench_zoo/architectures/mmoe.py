"""Multi-gate mixture of experts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mtlbench.contracts import Architecture, EncoderFactory, Features, Pyramid, PyramidShape, Task
from mtlbench.errors import MtlbenchError


class Gate(nn.Module):
    """One task's view of the experts: pooled features ``[B, F]`` -> weights ``[B, experts]`` that sum to 1.

    context: whether the features first pass context gating, ``v * sigmoid(U v + c)``.
    """

    def __init__(self, features: int, experts: int, context: bool) -> None:
        super().__init__()
        self.context = nn.Linear(features, features) if context else None
        self.linear = nn.Linear(features, experts)
        # Small and not zero: experts start almost equal, and what lies below the layer is trained at once.
        nn.init.normal_(self.linear.weight, std=0.1 / features**0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the weights."""
        if self.context is not None:
            pooled = pooled * torch.sigmoid(self.context(pooled))
        return torch.softmax(self.linear(pooled), dim=1)


class MMoE(Architecture):
    """Multi-gate mixture of experts: every task mixes the features of all experts with a gate of its own.

    The experts are encoders. With ``f_e[s]`` the features of expert e at stage s and v the last stages of all
    experts, averaged over space and joined, task t receives at every stage

        ``sum_e g_te f_e[s]``,   ``g_t = softmax(W_t v + b_t)``,   ``[B, experts]``.

    Source: Ma, Zhao, Yi, Chen, Hong & Chi, KDD 2018, eq. 6-7. Deviations: their gate reads the input
    vector; for images that would be raw pixels, so here it reads what the experts saw in them. All
    stages are mixed, because maps are decoded from all of them.

    experts: how many, at least 2 (one would be hps); the paper used 8 small ones. gate: "softmax" as above;
    "context" lets the features gate themselves before, each task with weights of its own:
    ``v * sigmoid(U_t v + c_t)`` takes the place of v (context gating of Miech, Laptev & Sivic, 2017,
    arXiv:1706.06905, eq. 3). Gates start almost uniform. A gate serves one task, so it receives that task's
    own gradient; gradient weightings act on the experts.
    """

    cost: ClassVar[str] = "`experts` trunks and T small gates"

    def __init__(
        self,
        encoder: EncoderFactory,
        tasks: Sequence[Task],
        experts: int = 3,
        gate: Literal["softmax", "context"] = "softmax",
    ) -> None:
        super().__init__(encoder, tasks)
        if experts < 2:
            raise MtlbenchError(
                f"architecture 'mmoe': experts must be at least 2, found {experts}; with one expert use 'hps'"
            )
        encoders = [encoder() for _ in range(experts)]
        self._shape = encoders[0].shape
        self.experts = nn.ModuleList(encoders)
        features = experts * self._shape.channels[-1]
        # A list, because the name of a task need not be fit for the name of a module.
        self.task_gates = nn.ModuleList(Gate(features, experts, gate == "context") for _ in tasks)

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        """Return the features of ``tasks`` (None: of all); only these are mixed."""
        seen = [expert(x) for expert in self.experts]
        weights = self._weights(seen, self.task_names if tasks is None else tasks)
        return Features({name: _mix(seen, weight) for name, weight in weights.items()})

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """Return how each task weighs the experts for the input ``x``: ``[B, experts]``, rows sum to 1.

        The experts are run in the mode they are in: call ``eval()`` first to leave their statistics alone.
        """
        return self._weights([expert(x) for expert in self.experts], self.task_names)

    def shape(self, task: str) -> PyramidShape:
        """Return the shape of an expert's pyramid, which mixing keeps."""
        return self._shape

    def shared_parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters of the experts; the gates serve one task each."""
        return self.experts.parameters()

    def _weights(self, seen: Sequence[Pyramid], names: Sequence[str]) -> dict[str, Tensor]:
        pooled = torch.cat([pyramid[-1].mean((2, 3)) for pyramid in seen], dim=1)
        return {name: self.task_gates[self.task_names.index(name)](pooled) for name in names}


def _mix(seen: Sequence[Pyramid], weight: Tensor) -> Pyramid:
    """Return the weighted sum of the experts' pyramids, stage by stage, without stacking them."""
    by_expert = weight.to(seen[0][0].dtype)[:, :, None, None, None].unbind(1)
    mixed = []
    for stages in zip(*seen, strict=True):
        total = stages[0] * by_expert[0]
        for stage, share in zip(stages[1:], by_expert[1:], strict=True):
            total.addcmul_(stage, share)
        mixed.append(total)
    return tuple(mixed)
