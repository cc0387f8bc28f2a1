"""Heads give the asked shape from any pyramid, start well, and are chosen by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mtlbench.contracts import Map, Output, PyramidShape, Vector
from mtlbench.errors import MtlbenchError
from mtlbench.heads import HEADS, FCNHead, UNetHead, VectorHead, build_head, he_initialise

DENSE = PyramidShape((4, 8, 16), (1, 2, 4), map_head="unet")
COARSE = PyramidShape((6, 6, 10, 12), (2, 4, 8, 16))
SINGLE = PyramidShape((5,), (4,))
SHAPES = [DENSE, COARSE, SINGLE]
PAIRS: list[tuple[str, Output]] = [("vector", Vector(3)), ("unet", Map(2)), ("fcn", Map(2))]


def pyramid(shape: PyramidShape, size: tuple[int, int], batch: int = 2) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(batch, c, size[0] // s, size[1] // s, generator=g).requires_grad_()
        for c, s in zip(shape.channels, shape.strides, strict=True)
    )


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("shape", SHAPES, ids=["dense", "coarse", "single"])
@pytest.mark.parametrize(("name", "output"), PAIRS, ids=[name for name, _ in PAIRS])
@pytest.mark.parametrize("size", [(32, 32), (37, 51)])
def test_output_has_the_asked_shape_and_trains_everything(
    shape: PyramidShape, name: str, output: Output, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    head, features = build_head(output, shape, name), pyramid(shape, size)
    result = head(features, size)
    assert result.shape == ((2, 3) if name == "vector" else (2, 2, *size))
    names = dict(head.named_parameters())
    gradients = torch.autograd.grad(result.square().sum(), [*names.values(), features[-1]])
    zero = [key for key, gradient in zip([*names, "features"], gradients, strict=True) if not gradient.any()]
    assert zero == []


def test_a_map_head_reads_every_stage_that_it_should() -> None:
    for shape in (DENSE, COARSE):
        features = pyramid(shape, (32, 32))
        value = build_head(Map(1), shape, "unet")(features, (32, 32)).square().sum()
        assert all(g.any() for g in torch.autograd.grad(value, features))
    features = pyramid(COARSE, (32, 32))
    value = build_head(Map(1), COARSE, "fcn")(features, (32, 32)).square().sum()
    read = [g is not None for g in torch.autograd.grad(value, features, allow_unused=True)]
    assert read == [False, True, True, True]


@pytest.mark.parametrize("name", ["unet", "fcn"])
def test_maps_keep_their_place(name: str) -> None:
    """A feature in one corner shows in that corner of the map, whatever the strides."""
    torch.manual_seed(0)
    head = build_head(Map(1), COARSE, name).eval()
    quiet = [
        torch.zeros(1, c, 64 // s, 64 // s) for c, s in zip(COARSE.channels, COARSE.strides, strict=True)
    ]
    loud = [f.clone() for f in quiet]
    for f in loud:
        f[..., -1, -1] = 10
    change = (head(tuple(loud), (64, 64)) - head(tuple(quiet), (64, 64))).abs()[0, 0]
    assert change[-8:, -8:].mean() > 5 * change[:32, :32].mean()


def test_parameter_counts_by_hand() -> None:
    assert parameters(build_head(Vector(4), DENSE)) == 16 * 128 + 128 + 128 * 64 + 64 + 64 * 4 + 4
    ups = [16 * 8 + 9 * 16 * 8 + 9 * 8 * 8 + 4 * 8, 8 * 4 + 9 * 8 * 4 + 9 * 4 * 4 + 4 * 4]
    assert parameters(build_head(Map(2), DENSE)) == sum(ups) + 4 * 2 + 2
    assert parameters(build_head(Map(2), COARSE)) == 9 * 12 * 64 + 2 * 64 + (64 + 6 + 10) * 2 + 3 * 2


def test_the_default_head_follows_output_and_encoder() -> None:
    assert isinstance(build_head(Vector(1), DENSE), VectorHead)
    assert isinstance(build_head(Map(1), DENSE), UNetHead)
    assert isinstance(build_head(Map(1), COARSE), FCNHead)
    assert sorted(HEADS) == ["fcn", "unet", "vector"]


def test_wrong_names_are_answered() -> None:
    with pytest.raises(MtlbenchError, match=r"unknown head 'fnc'\. Did you mean 'fcn'\? .*: fcn, unet"):
        build_head(Map(1), DENSE, "fnc")
    with pytest.raises(MtlbenchError, match=r"head 'vector' cannot give Map\(channels=1\); use one of: fcn"):
        build_head(Map(1), DENSE, "vector")
    with pytest.raises(MtlbenchError, match=r"head 'unet' cannot give Vector\(size=2\); use one of: vector"):
        build_head(Vector(2), DENSE, "unet")


def test_he_initialisation_has_the_published_variance() -> None:
    torch.manual_seed(0)
    normalised, plain = nn.Conv2d(32, 64, 3, bias=False), nn.Conv2d(32, 64, 3)
    linear, norm = nn.Linear(300, 200), nn.BatchNorm2d(4)
    nn.init.constant_(norm.weight, 3)
    nn.init.constant_(norm.bias, 3)
    he_initialise(nn.Sequential(normalised, plain, linear, norm))
    for weight, fan in ((normalised.weight, 64 * 9), (plain.weight, 32 * 9), (linear.weight, 300)):
        assert weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.03)
        assert abs(weight.mean().item()) < 0.1 * weight.std().item()
    assert plain.bias is not None
    assert not plain.bias.any()
    assert not linear.bias.any()
    assert norm.weight.tolist() == [1] * 4
    assert norm.bias.tolist() == [0] * 4


def test_outputs_start_at_the_size_of_one() -> None:
    torch.manual_seed(0)
    for name, output in PAIRS:
        features = tuple(f.relu() for f in pyramid(DENSE, (32, 32), batch=8))
        head = build_head(output, DENSE, name)
        he_initialise(head)
        assert head(features, (32, 32)).abs().mean() < 3
