"""DSelect-k: a differentiable choice of k experts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mtlbench.contracts import Architecture, EncoderFactory, Features, PyramidShape, Task
from mtlbench_zoo.architectures._parts import (
    copies,
    gate_reading,
    mix_levels,
    pool,
    require,
    small_linear,
    stage_name,
)


class SelectK(nn.Module):
    """The gate of one task: k selectors, each a choice of one expert by a binary code, and their weights.

    features: size of the input that the codes depend on; None: they are free parameters (static).
    """

    codes: Tensor

    def __init__(self, experts: int, k: int, gamma: float, features: int | None) -> None:
        super().__init__()
        self.experts, self.k, self.gamma = experts, k, gamma
        self.bits = (experts - 1).bit_length()
        outputs = k * (1 + self.bits)
        # Selectors must differ from the start, or they would choose the same experts for ever.
        start = torch.empty(outputs).uniform_(-gamma / 100, gamma / 100)
        self.linear = None if features is None else small_linear(features, outputs, start)
        self.static = nn.Parameter(start) if features is None else None
        numbers = torch.arange(2**self.bits)
        self.register_buffer("codes", (numbers[:, None] >> torch.arange(self.bits)) & 1, persistent=False)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of the experts ``[B, E]`` and what each selector chooses, ``[B, k, E]``."""
        if self.linear is not None:
            values = self.linear(pooled)
        elif self.static is not None:
            values = self.static.expand(len(pooled), -1)
        importance = torch.softmax(values[:, : self.k], dim=1)
        bits = smooth_step(values[:, self.k :], self.gamma).view(-1, self.k, 1, self.bits)
        chosen = torch.where(self.codes.bool(), bits, 1 - bits).prod(-1)
        # Codes beyond the last expert stand for the first ones again, so that every code is somebody's.
        spare = chosen[..., self.experts :]
        choice = chosen[..., : self.experts].clone()
        choice[..., : spare.shape[-1]] += spare
        return (importance[:, :, None] * choice).sum(1), choice


class DSelectK(Architecture):
    """DSelect-k: every task mixes at most k experts, chosen by differentiable binary codes.

    The experts are encoders, numbered in binary. Selector i of a task has one smooth bit ``S(z)`` for each
    binary digit,

        ``S(z) = -2/gamma^3 z^3 + 3/(2 gamma) z + 1/2``,   0 below ``-gamma/2``, 1 above ``gamma/2``,

    and chooses expert e by ``r_i(e)``, the product over the digits of S where e has a 1 and of 1 - S where it
    has a 0. The task weighs expert e by ``sum_i softmax(a)_i r_i(e)`` and receives the experts' features
    mixed so at every stage. Once all bits are 0 or 1, that are k experts at most.

    Source: Hazimeh, Zhao, Chowdhery, Sathiamoorthy, Chen, Mazumder, Hong & Chi, NeurIPS 2021,
    arXiv:2106.03760. Deviations: gates by example read what the experts saw, averaged over
    space, where theirs read the input vector. Where the number of experts is no power of two, codes beyond
    the last expert stand for the first ones again; the paper keeps away from such codes by a penalty, which
    is infinite at them.

    experts: how many, at least 2. k: selectors a task, in 1..experts. gamma: how far z may be from 0 before a
    bit is certain, above 0 (paper: 1). gating: "example": z and a are linear in what the experts saw of a
    sample; "static": they are parameters (the paper has both). entropy: weight of the regulariser, at least
    0: the entropy of ``r_i``, summed over selectors, averaged over samples and tasks, is added to the
    objective, so that bits become certain.

    A gate serves one task, so it receives that task's own gradient; gradient weightings act on the experts.
    """

    cost: ClassVar[str] = "`experts` trunks and T small gates"

    def __init__(
        self,
        encoder: EncoderFactory,
        tasks: Sequence[Task],
        experts: int = 4,
        k: int = 2,
        gamma: float = 1.0,
        gating: Literal["example", "static"] = "example",
        entropy: float = 0.01,
    ) -> None:
        super().__init__(encoder, tasks)
        name = "dselect-k"
        require(name, "experts", "at least 2", experts > 1, experts, "with one expert use 'hps'")
        require(name, "k", f"in 1..{experts} (the number of experts)", 1 <= k <= experts, k)
        require(name, "gamma", "above 0 and finite", 0 < gamma < float("inf"), gamma)
        require(name, "entropy", "at least 0 and finite", 0 <= entropy < float("inf"), entropy)
        self.entropy = entropy
        self.experts = copies(encoder, experts)
        self._names = [f"expert{number + 1}" for number in range(experts)]
        self._shape = self.experts[0].shape
        features = experts * self._shape.channels[-1] if gating == "example" else None
        # A list, because the name of a task need not be fit for the name of a module.
        self.task_gates = nn.ModuleList(SelectK(experts, k, gamma, features) for _ in tasks)

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        """Return the features of ``tasks`` (None: of all), and the entropy of their selectors as penalty."""
        seen = [expert(x) for expert in self.experts]
        pooled = pool(pyramid[-1] for pyramid in seen)
        place = stage_name(len(self._shape.channels) - 1)
        pyramids, readings, entropies = {}, [], []
        for name in self.task_names if tasks is None else tasks:
            gate, choice = self.task_gates[self.task_names.index(name)](pooled)
            pyramids[name] = mix_levels(seen, gate)
            readings.append(gate_reading(place, gate, name, self._names))
            entropies.append(torch.special.entr(choice.clamp(min=1e-12)).sum((1, 2)).mean())
        penalty = self.entropy * torch.stack(entropies).mean() if self.entropy else None
        return Features(pyramids, penalty=penalty, readings=tuple(readings))

    def shape(self, task: str) -> PyramidShape:
        """Return the shape of an expert's pyramid, which mixing keeps."""
        return self._shape

    def shared_parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters of the experts; the gates serve one task each."""
        return self.experts.parameters()


def smooth_step(z: Tensor, gamma: float) -> Tensor:
    """Return 0 below ``-gamma/2``, 1 above ``gamma/2`` and the cubic between that joins them smoothly."""
    t = (z / gamma).clamp(-0.5, 0.5)
    return -2 * t**3 + 1.5 * t + 0.5
