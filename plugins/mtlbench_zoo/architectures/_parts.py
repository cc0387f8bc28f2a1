"""What several architectures are made of: weighted sums of features, gates, runs of stages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtlbench.contracts import Encoder, EncoderFactory, Pyramid, Reading
from mtlbench.errors import MtlbenchError

M = TypeVar("M", bound=nn.Module)
GateKind = Literal["softmax", "context"]


class Modules(nn.ModuleList, Generic[M]):
    """A `torch.nn.ModuleList` that tells type checkers what it holds."""

    if TYPE_CHECKING:

        def __init__(self, modules: Iterable[M] = ()) -> None: ...

        def __getitem__(self, idx: int) -> M: ...  # type: ignore[override]

        def __iter__(self) -> Iterator[M]: ...


class Gate(nn.Module):
    """One view of the experts: pooled features ``[B, F]`` -> weights ``[B, experts]`` that sum to 1.

    kind: "softmax", or "context", where the features first pass context gating, ``v * sigmoid(U v + c)``.
    """

    def __init__(self, features: int, experts: int, kind: GateKind = "softmax") -> None:
        super().__init__()
        self.context = nn.Linear(features, features) if kind == "context" else None
        self.linear = small_linear(features, experts)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the weights."""
        if self.context is not None:
            pooled = pooled * torch.sigmoid(self.context(pooled))
        return torch.softmax(self.linear(pooled), dim=1)


def small_linear(features: int, outputs: int, bias: Tensor | None = None) -> nn.Linear:
    """Return a layer that gives almost ``bias`` (None: 0) at first.

    Small and not zero: experts start almost equal, and what lies below the layer is trained at once.
    """
    layer = nn.Linear(features, outputs)
    nn.init.normal_(layer.weight, std=0.1 / features**0.5)
    with torch.no_grad():
        layer.bias.copy_(torch.zeros(outputs) if bias is None else bias)
    return layer


def pool(features: Iterable[Tensor]) -> Tensor:
    """Return features ``[B, C_i, H_i, W_i]`` averaged over space and joined, ``[B, sum C_i]``."""
    return torch.cat([feature.mean((2, 3)) for feature in features], dim=1)


def weighted_sum(features: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Return ``sum_i weights[i] * features[i]`` without stacking; each weight broadcasts to its feature."""
    total = features[0] * weights[0]
    for feature, weight in zip(features[1:], weights[1:], strict=True):
        total.addcmul_(feature, weight)
    return total


def mix(features: Sequence[Tensor], gate: Tensor) -> Tensor:
    """Return the sum of ``features`` ``[B, C, H, W]``, weighted by each sample's row of ``gate`` [B, E]."""
    return weighted_sum(features, gate.to(features[0].dtype)[:, :, None, None, None].unbind(1))


def mix_levels(seen: Sequence[Sequence[Tensor]], gate: Tensor) -> Pyramid:
    """Return the experts' levels mixed by one ``gate`` ``[B, E]``; ``seen`` holds one sequence an expert."""
    return tuple(mix(level, gate) for level in zip(*seen, strict=True))


def pool_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return the maxima of ``x`` ``[B, C, H, W]`` at the ``size`` of a later stage; x itself where equal."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    if all(have == 2 * want for have, want in zip(x.shape[2:], size, strict=True)):
        return functional.max_pool2d(x, 2)
    return functional.adaptive_max_pool2d(x, tuple(size))


def run(stages: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    """Apply stages one after another and return what each gave."""
    given = []
    for stage in stages:
        x = stage(x)
        given.append(x)
    return given


def copies(encoder: EncoderFactory, count: int) -> Modules[Encoder]:
    """Return ``count`` new encoders, all alike."""
    return Modules(encoder() for _ in range(count))


def gate_reading(place: str, gate: Tensor, task: str | None, names: Sequence[str]) -> Reading:
    """Return what is to be seen of a gate ``[B, E]``."""
    return Reading("gate", place, gate.detach(), task, tuple(names))


def stage_name(index: int) -> str:
    """Return what people call the stage at ``index``: they count from 1."""
    return f"stage{index + 1}"


def require(architecture: str, parameter: str, rule: str, ok: bool, found: object, hint: str = "") -> None:
    """Refuse the value ``found`` of a parameter unless ``ok``; ``hint`` says what to do instead."""
    if not ok:
        end = f"; {hint}" if hint else ""
        raise MtlbenchError(f"architecture {architecture!r}: {parameter} must be {rule}, found {found}{end}")


def sample_one(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Return one-hot choices along the last dimension, with probabilities ``softmax(logits)``.

    Gradients are those of the Gumbel-softmax relaxation ``softmax((logits + noise) / temperature)``
    (straight-through). The noise comes from torch's global generator.
    """
    uniform = torch.rand_like(logits).clamp(min=1e-20)
    soft = torch.softmax((logits - torch.log(-torch.log(uniform))) / temperature, dim=-1)
    hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    return hard - soft.detach() + soft
