"""The kit finds what an encoder or an architecture does wrong, and says it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
import torch
from torch import Tensor, nn

from mtlbench.contracts import Architecture, Encoder, EncoderFactory, Features, PyramidShape, Task
from mtlbench.testing import TinyEncoder, check_architecture, check_encoder


class Shared(Architecture):
    """One encoder for all tasks."""

    shares_features = True

    def __init__(self, encoder: EncoderFactory, tasks: Sequence[Task]) -> None:
        super().__init__(encoder, tasks)
        self.encoder = encoder()

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        shared = self.encoder(x)
        return Features(dict.fromkeys(tasks or self.task_names, shared), shared)

    def shape(self, task: str) -> PyramidShape:
        return self.encoder.shape


class Gated(Shared):
    """One encoder, and for each task a gate that is its own."""

    shares_features = False

    def __init__(self, encoder: EncoderFactory, tasks: Sequence[Task]) -> None:
        super().__init__(encoder, tasks)
        self.gates = nn.ParameterDict({task.name: nn.Parameter(torch.zeros(())) for task in tasks})

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        shared = self.encoder(x)
        names = tasks or self.task_names
        return Features({name: tuple(f * self.gates[name].exp() for f in shared) for name in names})

    def shared_parameters(self) -> Iterable[nn.Parameter]:
        return self.encoder.parameters()


@pytest.mark.parametrize("cls", [Shared, Gated])
def test_architectures_that_keep_the_contract_pass(cls: type[Architecture]) -> None:
    check_architecture(cls)


def test_the_tiny_encoder_keeps_the_contract() -> None:
    check_encoder(TinyEncoder)


class AllTasksAlways(Shared):
    """Gives features that were not asked for."""

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        return super().forward(x)


class WrongShape(Shared):
    """Promises strides that it does not keep."""

    def shape(self, task: str) -> PyramidShape:
        return PyramidShape(self.encoder.shape.channels, (1, 1, 1))


class SilentSharing(Shared):
    """Gives shared features and does not say so."""

    shares_features = False


class NoSharing(Gated):
    """Says that it shares features and does not."""

    shares_features = True


class Unused(Shared):
    """Has a layer that nothing uses."""

    def __init__(self, encoder: EncoderFactory, tasks: Sequence[Task]) -> None:
        super().__init__(encoder, tasks)
        self.extra = nn.Linear(2, 2)


class LeftOut(Shared):
    """Calls nothing shared."""

    def shared_parameters(self) -> Iterable[nn.Parameter]:
        return ()


class Foreign(Shared):
    """Calls a parameter shared that is not its own."""

    def shared_parameters(self) -> Iterable[nn.Parameter]:
        return (nn.Parameter(torch.zeros(1)),)


class RandomGate(Shared):
    """Is as random in eval mode as in training."""

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        return super().forward(x + torch.rand_like(x), tasks)


class Mixing(Gated):
    """Lets a task's features depend on which other tasks are asked for."""

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        return super().forward(x * len(tasks or self.task_names), tasks)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (AllTasksAlways, r"asked for the tasks \['task1'\], it gives features for \['task0', 'task1'\]"),
        (WrongShape, r"shape\('task0'\) promises"),
        (SilentSharing, "Features.shared is given, but shares_features is False"),
        (NoSharing, "shares_features is True, but Features.shared is None"),
        (Unused, "parameter extra.weight has no influence"),
        (LeftOut, r"must serve one task; it serves \['task0', 'task1'\]"),
        (Foreign, "not among parameters"),
        (RandomGate, "two passes in eval mode differ"),
        (Mixing, "depend on which other tasks are asked for"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_an_architecture_breaks_is_named(cls: type[Architecture], message: str) -> None:
    with pytest.raises(AssertionError, match=message) as caught:
        check_architecture(cls)
    assert str(caught.value).startswith(f"{cls.__name__}: ")


class WrongChannels(TinyEncoder):
    """Promises channels that it does not have."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.shape = PyramidShape((4, 6, 9), (1, 2, 4))


class TooFewStrides(TinyEncoder):
    """Describes two of its three stages."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.shape = PyramidShape((4, 6), (1, 2))


class Outside(TinyEncoder):
    """Has a layer before its stages, which an architecture would pass by."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.stem = nn.Conv2d(in_channels, in_channels, 1)


class Dead(TinyEncoder):
    """Has a parameter that no input reaches."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.stages[0].register_parameter("dead", nn.Parameter(torch.zeros(1)))


class AlwaysDropping(TinyEncoder):
    """Drops features in eval mode too."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return super().forward(nn.functional.dropout(x, training=True))


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (WrongChannels, "shape promises"),
        (TooFewStrides, "3 stages, but shape has 2 channels and 2 strides"),
        (Outside, "parameter stem.weight lies outside `stages`"),
        (Dead, "parameter stages.0.dead has no influence"),
        (AlwaysDropping, "two passes in eval mode differ"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_an_encoder_breaks_is_named(cls: type[Encoder], message: str) -> None:
    with pytest.raises(AssertionError, match=message) as caught:
        check_encoder(cls)
    assert str(caught.value).startswith(f"{cls.__name__}: ")
