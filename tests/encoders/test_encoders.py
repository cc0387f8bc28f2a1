"""The encoders of the box: shapes, counts, names, errors, and graphs that stand several backwards."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import nn

from mtlbench.contracts import Encoder, Map, Vector
from mtlbench.errors import MtlbenchError
from mtlbench.heads import build_head
from mtlbench.testing import check_encoder
from mtlbench_zoo.encoders._entry import ChannelsLast
from mtlbench_zoo.encoders._resnet import ResNet
from mtlbench_zoo.encoders.conv import Conv
from mtlbench_zoo.encoders.mlp import MLP
from mtlbench_zoo.encoders.resnet import ResNet18, ResNet34, ResNet50, ResNet101
from mtlbench_zoo.encoders.segnet import SegNet
from mtlbench_zoo.encoders.unet import UNet
from mtlbench_zoo.encoders.vgg import VGG16

FACTORIES: dict[str, Callable[[], Encoder]] = {
    "unet": lambda: UNet(3, width=4),
    "unet-shallow": lambda: UNet(3, depth=3, width=4),
    "conv": lambda: Conv(3, width=4),
    "resnet18": lambda: ResNet18(3),
    "resnet50-dilated": lambda: ResNet50(3, dilated=True),
    "vgg16": lambda: VGG16(3),
    "segnet": lambda: SegNet(3),
    "segnet-basic": lambda: SegNet(3, basic=True),
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
    ("make", "count"),
    [
        (lambda: VGG16(3), 14_714_688),
        (lambda: VGG16(3, batch_norm=True), 14_714_688 + 4224),  # a scale and a shift for what was a bias
        (lambda: SegNet(3), 14_714_688 + 4224),
        (lambda: SegNet(3, basic=True), 49 * 64 * (3 + 4 * 64) + 5 * 128),
        (lambda: ResNet34(3), 21_284_672),
        (lambda: ResNet34(3, dilated=True), 21_284_672),
        (lambda: ResNet50(3), 23_508_032),
        (lambda: ResNet101(3), 42_500_160),
    ],
)
def test_published_sizes(make: Callable[[], Encoder], count: int) -> None:
    assert parameters(make()) == count


@pytest.mark.parametrize(
    ("cls", "more"),
    [
        (Conv, {"width": 4}),
        (MLP, {}),
        (ResNet18, {"dilated": True, "stride": 16}),
        (ResNet34, {}),
        (SegNet, {"basic": True}),
        (VGG16, {"batch_norm": True}),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else "-".join(v),
)
def test_the_contract_is_kept(cls: type[Encoder], more: dict[str, object]) -> None:
    check_encoder(cls, **more)


def test_layers_have_torchvisions_numbers() -> None:
    plain = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    names = {key.partition(".")[2] for key in VGG16(3).stages.state_dict()}
    assert names == {f"{number}.{part}" for number in plain for part in ("weight", "bias")}
    normed = [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]
    names = {key.partition(".")[2] for key in VGG16(3, batch_norm=True).stages.state_dict()}
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert names == {
        *(f"{number}.weight" for number in normed),
        *(f"{number + 1}.{part}" for number in normed for part in norm),
    }
    fifty = {key.partition(".")[2] for key in ResNet50(3).stages.state_dict()}
    assert {"conv1.weight", "layer1.0.downsample.1.running_var", "layer4.2.conv3.weight"} <= fifty
    assert len(fifty) == 318  # torchvision's 320 without fc.weight and fc.bias


@pytest.mark.parametrize("cls", [ResNet18, ResNet50])
@pytest.mark.parametrize("stride", [8, 16])
def test_a_dilated_network_gives_between_what_the_strided_one_gives(cls: type[ResNet], stride: int) -> None:
    """What the strided network computes is every second (fourth) value of the dilated one, to the border."""
    torch.manual_seed(0)
    strided, dilated = cls(3).eval(), cls(3, dilated=True, stride=stride).eval()
    dilated.load_state_dict(strided.state_dict())
    x = torch.rand(1, 3, 64, 96)
    assert dilated.shape.strides == (2, 4, 8, min(stride, 16), stride)
    assert dilated.shape.map_head == "aspp"
    with torch.no_grad():
        for coarse, fine in zip(strided(x), dilated(x), strict=True):
            step = fine.shape[2] // coarse.shape[2]
            torch.testing.assert_close(fine[:, :, ::step, ::step], coarse, rtol=1e-4, atol=1e-4)


def test_resnet50_equals_the_blocks_written_out() -> None:
    """Against a second construction, from the layers' names alone."""
    torch.manual_seed(0)
    encoder = ResNet50(3).eval()
    state = {key.partition(".")[2]: value for key, value in encoder.stages.state_dict().items()}

    def normed(x: torch.Tensor, conv: str, norm: str, stride: int = 1) -> torch.Tensor:
        weight = state[f"{conv}.weight"]
        x = nn.functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        names = ("running_mean", "running_var", "weight", "bias")
        return nn.functional.batch_norm(x, *(state[f"{norm}.{part}"] for part in names))

    with torch.no_grad():
        x = torch.rand(1, 3, 64, 64)
        expected = [normed(x, "conv1", "bn1", 2).relu()]
        y = nn.functional.max_pool2d(expected[0], 3, 2, 1)
        for layer, count in enumerate((3, 4, 6, 3), start=1):
            for block in range(count):
                name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
                z = normed(y, f"{name}.conv1", f"{name}.bn1").relu()
                z = normed(z, f"{name}.conv2", f"{name}.bn2", stride).relu()
                z = normed(z, f"{name}.conv3", f"{name}.bn3")
                if block == 0:
                    y = normed(y, f"{name}.downsample.0", f"{name}.downsample.1", stride)
                y = (y + z).relu()
            expected.append(y)
        for ours, theirs in zip(encoder(x), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_mlp_reads_tables() -> None:
    torch.manual_seed(0)
    encoder = MLP(5, hidden=(8, 6)).eval()
    x = torch.rand(4, 5)
    found = encoder(x)
    assert [f.shape for f in found] == [(4, 8, 1, 1), (4, 6, 1, 1)]
    first, second = (stage[-3].weight[:, :, 0, 0] for stage in encoder.stages)  # type: ignore[index]
    expected = ((x @ first.T / (1 + 1e-5) ** 0.5).relu() @ second.T / (1 + 1e-5) ** 0.5).relu()
    torch.testing.assert_close(found[1][:, :, 0, 0], expected)
    assert build_head(Vector(3), encoder.shape)(found, ()).shape == (4, 3)  # type: ignore[arg-type]
    with pytest.raises(MtlbenchError, match=r"no place in space: no head makes Map\(channels=1\)"):
        build_head(Map(1), encoder.shape, "fcn")
    with pytest.raises(MtlbenchError, match=r"'mlp' reads tables \[B, 5\], found \(2, 3, 8, 8\)"):
        encoder(torch.rand(2, 3, 8, 8))


def test_images_are_normalised_on_request() -> None:
    x = torch.rand(2, 3, 16, 16)
    plain, normed = VGG16(3), VGG16(3, normalize=True)
    normed.load_state_dict(plain.state_dict())
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    shifted = (x - mean[:, None, None]) / deviation[:, None, None]
    torch.testing.assert_close(normed(x)[0], plain(shifted)[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ResNet18(3, stride=8),
            "'resnet18' with dilated=false: stride must be 32; smaller .* found 8",
        ),
        (lambda: ResNet50(3, dilated=True, stride=32), "dilated=true: stride must be 8 or 16, found 32"),
        (lambda: VGG16(1, normalize=True), "normalize and weights are for images of 3 channels, found 1"),
        (lambda: SegNet(3, basic=True, weights="imagenet"), "'segnet': there are no weights for basic=true"),
        (lambda: MLP(3, hidden=()), "hidden must name the units of at least one stage"),
        (lambda: MLP(3, hidden=(4, 0)), "'mlp': hidden must be at least 1, found 0"),
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
