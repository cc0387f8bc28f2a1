"""Small parts that checks are made with: an encoder, tasks, and how a plugin is built."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mtlbench.contracts import Encoder, Loss, Map, Output, PyramidShape, Task, Vector, Weighting
from mtlbench.losses import L1, MSE, CrossEntropy
from mtlbench.registry import Registry

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


class TinyEncoder(Encoder):
    """Three stages of one smooth 3 x 3 convolution, each after the first at half the resolution before."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        channels = (in_channels, 4, 6, 8)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, stride=1 if i == 0 else 2, padding=1), nn.SiLU())
            for i, (before, after) in enumerate(pairwise(channels))
        )
        self.shape = PyramidShape(channels[1:], (1, 2, 4))


def tiny_tasks(count: int) -> tuple[Task, ...]:
    """Return ``count`` tasks, in turn a classification, a segmentation and two regressions; no metrics."""
    kinds: tuple[tuple[Output, Loss], ...] = (
        (Vector(4), CrossEntropy()),
        (Map(3), CrossEntropy()),
        (Vector(2), MSE()),
        (Map(1), L1()),
    )
    return tuple(Task(f"task{i}", *kinds[i % len(kinds)], ()) for i in range(count))


@cache
def _registry() -> Registry:
    return Registry()


def inner_weightings(tasks: Sequence[Task]) -> Callable[[str], Weighting]:
    """Return what a wrapper gets as ``weightings``: a spec to an installed weighting for ``tasks``."""

    def inner(spec: str) -> Weighting:
        found: Weighting = _registry().choose("weightings", spec).build(tasks=tasks, weightings=inner)
        return found

    return inner


def build(cls: Callable[..., T], context: dict[str, object], parameters: dict[str, Any]) -> T:
    """Call ``cls`` with its ``parameters`` and with what it asks for by name out of ``context``."""
    wanted = inspect.signature(cls).parameters
    return cls(**{name: value for name, value in context.items() if name in wanted}, **parameters)


def through_checkpoint(source: nn.Module, target: M) -> M:
    """Carry the state of ``source`` into ``target`` the way a checkpoint does, and return ``target``."""
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    try:
        target.load_state_dict(torch.load(file, weights_only=True))
    except Exception as error:
        name = type(source).__name__
        raise AssertionError(f"{name}: its state_dict does not survive a checkpoint: {error}") from error
    return target


def nudge(module: nn.Module) -> None:
    """Move every parameter a little, so that one initialised with zeros hides nothing behind it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)


def probe(features: list[Tensor], seed: int = 2) -> Tensor:
    """Return a random linear function of all features, a scalar that no gradient can cancel out of."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([(f * torch.randn(f.shape, generator=generator)).sum() for f in features]).sum()


def untrained(owner: str, module: nn.Module, value: Tensor) -> dict[str, str]:
    """Return the trainable parameters of ``module`` that ``value`` does not train, each with what is wrong.

    Asserts that no gradient is infinite or NaN.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    gradients: Sequence[Tensor | None] = [None] * len(named)
    if named and value.requires_grad:
        gradients = torch.autograd.grad(value, [p for _, p in named], allow_unused=True, retain_graph=True)
    found = {}
    for (name, _), gradient in zip(named, gradients, strict=True):
        if gradient is None:
            found[name] = f"parameter {name} has no influence on what is returned"
            continue
        assert gradient.isfinite().all(), f"{owner}: the gradient of {name} is not finite"
        if not gradient.any():
            found[name] = f"the gradient of {name} is zero: it would never be trained"
    return found


def require_gradients(owner: str, module: nn.Module, value: Tensor) -> None:
    """Assert that ``value`` has a finite gradient, not zero, in every trainable parameter of ``module``."""
    for reason in untrained(owner, module, value).values():
        raise AssertionError(f"{owner}: {reason}")
