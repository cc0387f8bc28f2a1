"""What an encoder promises."""

from __future__ import annotations

from typing import Any

import torch

from mtlbench.contracts import Encoder, Pyramid
from mtlbench.testing.parts import build, nudge, probe, require_gradients, through_checkpoint


def check_encoder(cls: type[Encoder], **parameters: Any) -> None:
    """Assert that an encoder with these parameters keeps the contract.

    For one and three input channels and two input sizes (multiples of its coarsest stride, one of them not
    square): every stage gives the channels and the stride that `shape` says; an encoder of tables gives
    ``[B, channels, 1, 1]``. Every parameter is trained, eval mode is deterministic, and a checkpoint restores
    it.
    """
    name = cls.__name__
    assert cls.__doc__, f"{name}: it has no docstring to say what it is and where it comes from"
    for in_channels in (1, 3):
        torch.manual_seed(0)
        encoder = build(cls, {"in_channels": in_channels}, parameters)
        _check_description(name, encoder)
        coarsest = max(encoder.shape.strides)
        tables = encoder.inputs == "tables"
        for size in [()] if tables else [(2 * coarsest, 2 * coarsest), (2 * coarsest, 3 * coarsest)]:
            x = torch.rand(3, in_channels, *size)
            _check_pyramid(name, encoder, encoder(x), (3, *(size or (1, 1))))
    nudge(encoder)
    encoder.train()
    require_gradients(name, encoder, probe(list(encoder(x))))
    encoder.eval()
    with torch.no_grad():
        first, second = encoder(x), encoder(x)
        assert _equal(first, second), f"{name}: two passes in eval mode differ"
        restored = through_checkpoint(encoder, build(cls, {"in_channels": in_channels}, parameters)).eval()
        assert _equal(first, restored(x)), f"{name}: restored from a checkpoint it gives other features"


def _check_description(name: str, encoder: Encoder) -> None:
    shape = encoder.shape
    assert len(encoder.stages) == len(shape.channels) == len(shape.strides), (
        f"{name}: {len(encoder.stages)} stages, but shape has {len(shape.channels)} channels and "
        f"{len(shape.strides)} strides; there must be one of each a stage"
    )
    assert list(shape.strides) == sorted(shape.strides), f"{name}: strides {shape.strides} must not decrease"
    inside = {id(parameter) for parameter in encoder.stages.parameters()}
    for parameter_name, parameter in encoder.named_parameters():
        assert id(parameter) in inside, (
            f"{name}: parameter {parameter_name} lies outside `stages`; an architecture that runs the stages "
            "itself would pass it by"
        )


def _check_pyramid(name: str, encoder: Encoder, pyramid: Pyramid, size: tuple[int, int, int]) -> None:
    batch, height, width = size
    assert isinstance(pyramid, tuple), f"{name}: forward must return a tuple, got {type(pyramid).__name__}"
    expected = [
        (batch, channels, height // stride, width // stride)
        for channels, stride in zip(encoder.shape.channels, encoder.shape.strides, strict=True)
    ]
    found = [tuple(level.shape) for level in pyramid]
    assert found == expected, (
        f"{name}: shape promises {expected} for {height} x {width}, forward gives {found}"
    )
    assert all(level.isfinite().all() for level in pyramid), f"{name}: the features are not finite"


def _equal(first: Pyramid, second: Pyramid) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
