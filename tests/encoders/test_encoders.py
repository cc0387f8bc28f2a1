"""The encoders of the box: shapes, counts, names, errors, and graphs that stand several backwards."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import nn

from mtlbench.contracts import Encoder
from mtlbench.errors import MtlbenchError
from mtlbench_zoo.encoders._entry import ChannelsLast
from mtlbench_zoo.encoders.conv import Conv
from mtlbench_zoo.encoders.resnet import ResNet18
from mtlbench_zoo.encoders.unet import UNet

FACTORIES: dict[str, Callable[[], Encoder]] = {
    "unet": lambda: UNet(3, width=4),
    "unet-shallow": lambda: UNet(3, depth=3, width=4),
    "conv": lambda: Conv(3, width=4),
    "resnet18": lambda: ResNet18(3),
}
every_encoder = pytest.mark.parametrize("make", FACTORIES.values(), ids=FACTORIES.keys())


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@every_encoder
@pytest.mark.parametrize("size", [(32, 64), (45, 39)])
def test_pyramid_is_as_the_shape_says(make: Callable[[], Encoder], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    encoder = make()
    pyramid = encoder(torch.rand(2, 3, *size))
    assert len(pyramid) == len(encoder.stages) == len(encoder.shape.channels) == len(encoder.shape.strides)
    shape = encoder.shape
    for features, channels, stride in zip(pyramid, shape.channels, shape.strides, strict=True):
        assert features.shape[:2] == (2, channels)
        for found, side in zip(features.shape[2:], size, strict=True):
            assert found in (side // stride, -(-side // stride))


@every_encoder
def test_every_parameter_is_trained_and_backwards_can_be_repeated(make: Callable[[], Encoder]) -> None:
    torch.manual_seed(0)
    encoder = make()
    names = dict(encoder.named_parameters())
    pyramid = encoder(torch.rand(2, 3, 32, 32))
    loss = sum((f * torch.randn_like(f)).mean() for f in pyramid)
    assert isinstance(loss, torch.Tensor)
    first = torch.autograd.grad(loss, list(names.values()), retain_graph=True)
    again = torch.autograd.grad(loss, list(names.values()))
    for name, a, b in zip(names, first, again, strict=True):
        assert a.any(), name
        torch.testing.assert_close(a, b)


@every_encoder
def test_stages_are_all_there_is(make: Callable[[], Encoder]) -> None:
    """Running the stages one by one is the encoder: no hidden part, no changed input."""
    torch.manual_seed(0)
    encoder = make().eval()
    x = torch.rand(1, 3, 32, 32)
    before, whole = x.clone(), encoder(x)
    assert parameters(encoder) == parameters(encoder.stages)
    step = x
    kept = []
    for stage in encoder.stages:
        step = stage(step)
        kept.append((step, step.clone()))
    assert torch.equal(x, before)
    for (features, copy), expected in zip(kept, whole, strict=True):
        assert torch.equal(features, copy)  # a later stage did not write into what an earlier one gave
        torch.testing.assert_close(features, expected)


@every_encoder
def test_wrong_input_is_refused_in_one_line(make: Callable[[], Encoder]) -> None:
    encoder = make()
    stride = encoder.shape.strides[-1]
    with pytest.raises(
        MtlbenchError, match=rf"needs images of at least {stride} x {stride} .* found {stride} x"
    ):
        encoder(torch.rand(2, 3, stride, stride - 1))
    with pytest.raises(MtlbenchError, match=r"reads images \[B, 3, H, W\], found \(2, 1, 64, 64\)"):
        encoder(torch.rand(2, 1, 64, 64))
    with pytest.raises(MtlbenchError, match=r"reads images .* found \(2, 3\)"):
        encoder(torch.rand(2, 3))


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("kind", [UNet, Conv])
def test_layout_changes_speed_and_not_values(kind: type[UNet | Conv], in_channels: int) -> None:
    torch.manual_seed(0)
    encoder = kind(in_channels, width=4)
    plain = deepcopy(encoder)
    for stage in plain.stages:
        assert isinstance(stage, nn.Sequential)
        for i, part in enumerate(stage):
            if isinstance(part, ChannelsLast):
                stage[i] = nn.Identity()
    x = torch.rand(2, in_channels, 32, 32)
    for ours, theirs in zip(encoder(x), plain(x), strict=True):
        assert ours.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_unet_by_hand() -> None:
    encoder = UNet(3)
    assert encoder.shape.channels == (16, 32, 64, 128)
    assert encoder.shape.strides == (1, 2, 4, 8)
    assert encoder.shape.map_head == "unet"
    inputs = (3, 16, 32, 64)
    blocks = zip(inputs, encoder.shape.channels, strict=True)
    assert parameters(encoder) == sum(9 * i * c + 9 * c * c + 4 * c for i, c in blocks)
    assert UNet(3, depth=3).shape.strides == (1, 2, 4)


def test_conv_by_hand() -> None:
    encoder = Conv(1, width=8)
    assert encoder.shape.channels == (8, 16, 32)
    assert encoder.shape.strides == (2, 4, 8)
    assert parameters(encoder) == 9 * (8 + 8 * 16 + 16 * 32) + 2 * (8 + 16 + 32)


def test_resnet18_has_the_published_size_and_torchvisions_names() -> None:
    encoder = ResNet18(3)
    assert parameters(encoder) == 11_176_512
    names = {key.split(".", 2)[2] for key in encoder.state_dict()}
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = {"conv1.weight", *(f"bn1.{part}" for part in norm)}
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            prefix = f"layer{layer}.{block}"
            expected |= {f"{prefix}.conv{i}.weight" for i in (1, 2)}
            expected |= {f"{prefix}.bn{i}.{part}" for i in (1, 2) for part in norm}
        if layer > 1:
            expected |= {f"layer{layer}.0.downsample.0.weight"}
            expected |= {f"layer{layer}.0.downsample.1.{part}" for part in norm}
    assert names == expected
    assert len(expected) == 120


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNet(3, depth=1), r"'unet': depth must be in 2\.\.6, found 1"),
        (lambda: UNet(3, depth=7), r"depth must be in 2\.\.6, found 7"),
        (lambda: UNet(3, width=0), "width must be at least 1, found 0"),
        (lambda: Conv(3, depth=0), r"'conv': depth must be in 1\.\.6, found 0"),
        (lambda: Conv(3, width=-2), "width must be at least 1, found -2"),
    ],
)
def test_wrong_parameters_are_refused(make: Callable[[], Encoder], message: str) -> None:
    with pytest.raises(MtlbenchError, match=message):
        make()
