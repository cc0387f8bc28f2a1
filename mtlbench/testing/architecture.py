"""What an architecture promises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtlbench.contracts import Architecture, Features, Reading, Task
from mtlbench.errors import MtlbenchError
from mtlbench.testing.parts import (
    TinyEncoder,
    build,
    nudge,
    probe,
    through_checkpoint,
    tiny_tasks,
    untrained,
)

_PASSES = 64
"""An architecture may sample what it trains; within so many passes everything must have had its turn."""


def check_architecture(cls: type[Architecture], **parameters: Any) -> None:
    """Assert that an architecture with these parameters keeps the contract.

    With `TinyEncoder` and one to three tasks: features of the promised shape for the tasks asked for, the
    same whether or not others are asked for; `Features.shared` given exactly if `shares_features` says so;
    readings of the stated shapes; every parameter is trained (within 64 passes, since paths may be sampled);
    a parameter left out of `shared_parameters` serves one task alone; eval mode is deterministic, and a
    checkpoint restores it.

    A number of tasks that the constructor refuses with `MtlbenchError` is left out; it must accept some.
    """
    name = cls.__name__
    assert cls.__doc__, f"{name}: it has no docstring to say what it is and where it comes from"

    def make(tasks: tuple[Task, ...]) -> Architecture:
        return build(cls, {"encoder": lambda task=None: TinyEncoder(), "tasks": tasks}, parameters)

    accepted = 0
    for count in (1, 2, 3):
        tasks = tiny_tasks(count)
        torch.manual_seed(0)
        try:
            architecture = make(tasks)
        except MtlbenchError:
            continue
        accepted += 1
        x = torch.rand(4, 3, 16, 24)
        nudge(architecture)
        architecture.train()
        features = architecture(x)
        _check_features(architecture, features, x, [task.name for task in tasks])
        _check_training(architecture, features, x)
        architecture.eval()
        with torch.no_grad():
            _check_evaluation(architecture, make(tasks), x)
    assert accepted, f"{name}: the constructor refuses one, two and three tasks"


def _check_features(architecture: Architecture, features: Features, x: Tensor, tasks: list[str]) -> None:
    name = type(architecture).__name__
    assert list(features.pyramids) == tasks, (
        f"{name}: asked for the tasks {tasks}, it gives features for {list(features.pyramids)}"
    )
    for task, pyramid in features.pyramids.items():
        shape = architecture.shape(task)
        expected = [
            (x.shape[0], channels, x.shape[2] // stride, x.shape[3] // stride)
            for channels, stride in zip(shape.channels, shape.strides, strict=True)
        ]
        found = [tuple(level.shape) for level in pyramid]
        assert found == expected, f"{name}: shape({task!r}) promises {expected}, forward gives {found}"
        assert all(level.isfinite().all() for level in pyramid), f"{name}: features of {task} are not finite"
    if architecture.shares_features:
        assert features.shared is not None, f"{name}: shares_features is True, but Features.shared is None"
        assert all(pyramid is features.shared for pyramid in features.pyramids.values()), (
            f"{name}: Features.shared is given, so every task's pyramid must be that same object"
        )
    else:
        assert features.shared is None, f"{name}: Features.shared is given, but shares_features is False"
    if features.penalty is not None:
        assert features.penalty.ndim == 0, f"{name}: the penalty must be a scalar"
        assert features.penalty.isfinite(), f"{name}: the penalty is {features.penalty.item()}"

    for reading in features.readings:
        _check_reading(name, reading, x, architecture.task_names)


def _check_reading(name: str, reading: Reading, x: Tensor, tasks: Sequence[str]) -> None:
    values, where = reading.values, f"{name}: the {reading.kind} at {reading.place!r}"
    assert reading.task is None or reading.task in tasks, f"{where} is of {reading.task!r}, no task of it"
    assert values.isfinite().all(), f"{where} is not finite"
    if reading.kind == "gate":
        assert values.dim() == 2, f"{where} must be [B, E], found {list(values.shape)}"
        assert len(values) == len(x), f"{where} must have one row a sample, found {len(values)}"
        rows = values.sum(1)
        assert torch.allclose(rows, torch.ones_like(rows), atol=1e-4), f"{where}: its rows do not sum to 1"
    elif reading.kind == "attention":
        assert values.dim() == 4, f"{where} must be [B, C, H, W], found {list(values.shape)}"
        assert values.min() >= 0, f"{where} must be in 0..1"
        assert values.max() <= 1, f"{where} must be in 0..1"
    else:
        assert values.dim() in (2, 3), f"{where} must be [T, T] or [C, T, T], found {list(values.shape)}"
        assert values.shape[-1] == values.shape[-2], f"{where} must be square"
    named = reading.names and reading.kind != "attention"
    assert not named or len(reading.names) == values.shape[-1], f"{where}: its names do not fit its columns"


def _check_training(architecture: Architecture, features: Features, x: Tensor) -> None:
    name = type(architecture).__name__
    values = {task: probe(list(pyramid)) for task, pyramid in features.pyramids.items()}
    terms = list(values.values()) + ([] if features.penalty is None else [features.penalty])
    missing = untrained(name, architecture, torch.stack(terms).sum())
    for _ in range(_PASSES - 1):
        if not missing:
            break
        again = [probe(list(pyramid)) for pyramid in architecture(x).pyramids.values()]
        still = untrained(name, architecture, torch.stack(again).sum())
        missing = {key: reason for key, reason in missing.items() if key in still}
    for reason in missing.values():
        raise AssertionError(f"{name}: {reason}")
    own = {id(parameter) for parameter in architecture.parameters()}
    shared = [id(parameter) for parameter in architecture.shared_parameters()]
    assert len(set(shared)) == len(shared), f"{name}: shared_parameters names a parameter twice"
    assert set(shared) <= own, f"{name}: shared_parameters gives some that are not among parameters()"
    left_out = {n: p for n, p in architecture.named_parameters() if p.requires_grad and id(p) not in shared}
    served: dict[str, list[str]] = {parameter_name: [] for parameter_name in left_out}
    for task, value in values.items():
        if left_out and value.requires_grad:
            gradients = torch.autograd.grad(
                value, list(left_out.values()), allow_unused=True, retain_graph=True
            )
            for parameter_name, gradient in zip(left_out, gradients, strict=True):
                if gradient is not None and gradient.any():
                    served[parameter_name].append(task)
    for parameter_name, names in served.items():
        assert len(names) == 1, (
            f"{name}: {parameter_name} is left out of shared_parameters, so it must serve one task; "
            f"it serves {names or 'none'}"
        )


def _check_evaluation(architecture: Architecture, fresh: Architecture, x: Tensor) -> None:
    name, tasks = type(architecture).__name__, list(architecture.task_names)
    everything = architecture(x)
    assert _equal(everything, architecture(x)), f"{name}: two passes in eval mode differ"
    restored = through_checkpoint(architecture, fresh).eval()
    assert _equal(everything, restored(x)), f"{name}: restored from a checkpoint it gives other features"
    for wanted in ([tasks[-1]], tasks[:2], tasks):
        some = architecture(x, wanted)
        _check_features(architecture, some, x, wanted)
        for task in wanted:
            for a, b in zip(everything.pyramids[task], some.pyramids[task], strict=True):
                assert torch.allclose(a, b, rtol=1e-4, atol=1e-5), (
                    f"{name}: the features of {task} depend on which other tasks are asked for"
                )


def _equal(first: Features, second: Features) -> bool:
    return all(
        torch.equal(a, b)
        for task, pyramid in first.pyramids.items()
        for a, b in zip(pyramid, second.pyramids[task], strict=True)
    )
