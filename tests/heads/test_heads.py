"""Heads give the asked shape from any pyramid, start well, and are chosen by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mtlbench.contracts import Map, Output, PyramidShape, Vector
from mtlbench.errors import MtlbenchError
from mtlbench.heads import (
    HEADS,
    FCNHead,
    SegNetHead,
    UNetHead,
    VectorHead,
    build_head,
    choose_head,
    he_initialise,
)
from mtlbench.heads.segnet import corners, unpool

DENSE = PyramidShape((4, 8, 16), (1, 2, 4), map_head="unet")
COARSE = PyramidShape((6, 6, 10, 12), (2, 4, 8, 16))
SINGLE = PyramidShape((5,), (4,))
SHAPES = [DENSE, COARSE, SINGLE]
PAIRS: list[tuple[str, Output]] = [
    ("vector", Vector(3)),
    ("unet", Map(2)),
    ("fcn", Map(2)),
    ("aspp[width=8]", Map(2)),
    ("segnet", Map(2)),
]


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


@pytest.mark.parametrize("name", ["unet", "fcn", "aspp[rates=[1,2],width=8]", "segnet"])
def test_maps_keep_their_place(name: str) -> None:
    """A feature in one corner shows in that corner of the map, whatever the strides."""
    torch.manual_seed(0)
    head = build_head(Map(1), COARSE, name).eval()
    he_initialise(head)
    quiet = [
        torch.zeros(1, c, 256 // s, 256 // s) for c, s in zip(COARSE.channels, COARSE.strides, strict=True)
    ]
    loud = [f.clone() for f in quiet]
    for f in loud:
        f[..., -1, -1] = 10
    change = (head(tuple(loud), (256, 256)) - head(tuple(quiet), (256, 256))).abs()[0, 0]
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
    assert isinstance(build_head(Map(1), replace(COARSE, map_head="segnet[kernel=5]")), SegNetHead)
    assert sorted(HEADS) == ["aspp", "fcn", "segnet", "unet", "vector"]


def test_wrong_names_are_answered() -> None:
    with pytest.raises(
        MtlbenchError, match=r"unknown head 'fnc'\. Did you mean 'fcn'\? .*: aspp, fcn, segnet, unet"
    ):
        build_head(Map(1), DENSE, "fnc")
    with pytest.raises(
        MtlbenchError, match=r"head 'vector' cannot give Map\(channels=1\); use one of: aspp, fcn"
    ):
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


@pytest.mark.parametrize("size", [(8, 6), (7, 9), (1, 5), (2, 2)])
@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_unpooling_is_max_unpooling(size: tuple[int, int], up: bool, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size).round(decimals=1).to(memory_format=layout)  # with ties
    if min(size) == 1 and not up:
        return
    pooled, indices = functional.max_pool2d(x, 2, ceil_mode=up, return_indices=True)
    values = torch.randn_like(pooled).requires_grad_()
    expected = functional.max_unpool2d(values, indices, 2, output_size=size)
    found = unpool(values, corners(x, pooled.shape[2:]), size)
    assert torch.equal(found, expected)
    gradient = torch.randn_like(found)
    (ours,) = torch.autograd.grad(found, values, gradient)
    (theirs,) = torch.autograd.grad(expected, values, gradient)
    assert torch.equal(ours, theirs)


def test_unpooling_is_allowed_where_results_must_be_reproducible() -> None:
    torch.use_deterministic_algorithms(True)
    head = build_head(Map(1), DENSE, "segnet")
    head(pyramid(DENSE, (16, 16)), (16, 16)).sum().backward()


def test_the_segnet_head_finds_the_indices_of_the_encoders_pooling() -> None:
    """Against the decoder written out with the indices that the encoder's own pooling returns."""
    torch.manual_seed(0)
    head = build_head(Map(2), DENSE, "segnet[convolutions=[1,2,1]]").eval()
    f = pyramid(DENSE, (32, 48))
    kept = [functional.max_pool2d(level, 2, return_indices=True) for level in f]
    x = kept[-1][0]
    for step, (_, indices), level in zip(head.steps, reversed(kept), reversed(f), strict=True):  # type: ignore[arg-type]
        x = step(functional.max_unpool2d(x, indices, 2, output_size=level.shape[2:]))
    torch.testing.assert_close(head(f, (32, 48)), head.out(x))  # type: ignore[operator]


def test_the_views_of_aspp_are_spread_by_their_rates() -> None:
    torch.manual_seed(0)
    head = build_head(Map(2), COARSE, "aspp[rates=[2,5],width=8]").eval()
    features = pyramid(COARSE, (320, 320), batch=1)
    changed = [f.detach().clone() for f in features]
    changed[-1][..., 10, 10] += 1
    before, after = (view(features[-1]) for view in head.views), (view(changed[-1]) for view in head.views)  # type: ignore[union-attr]
    for rate, a, b in zip((0, 2, 5), before, after, strict=True):
        rows = (a != b).any(1)[0].any(1).nonzero()[:, 0].tolist()
        assert rows == sorted({10 - rate, 10, 10 + rate})
    assert parameters(head) == (1 + 9 + 9) * 12 * 8 + 12 * 8 + 8 + 4 * 8 * 8 + 4 * 16 + 2 * 8 + 2


def test_a_head_is_a_spec() -> None:
    output = Map(3)
    assert str(choose_head("aspp[width=256,rates=[1,2]]", output)) == "aspp[rates=[1,2]]"
    assert choose_head("vector", Vector(1)).parameters == {"hidden": (128, 64)}
    assert parameters(build_head(Vector(4), DENSE, "vector[hidden=[]]")) == 16 * 4 + 4
    assert parameters(build_head(Vector(4), DENSE, "vector[hidden=[8]]")) == 16 * 8 + 8 + 8 * 4 + 4
    with pytest.raises(MtlbenchError, match=r"head 'aspp': unknown parameter 'rate'\. Did you mean 'rates'"):
        choose_head("aspp[rate=[1]]", output)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("aspp[rates=[]]", r"rates must be whole numbers from 1 on, found \[\]"),
        ("aspp[rates=[6,0]]", r"rates must .* found \[6, 0\]"),
        ("aspp[width=0]", "width must be at least 1, found 0"),
        ("segnet[kernel=2]", "kernel must be odd and at least 1, found 2"),
        ("segnet[convolutions=[1,2]]", r"one number .* or one for each of the 4, found \[1, 2\]"),
        ("segnet[convolutions=[0]]", r"found \[0\]"),
    ],
)
def test_wrong_parameters_of_heads_are_refused(spec: str, message: str) -> None:
    with pytest.raises(MtlbenchError, match=message):
        build_head(Map(1), COARSE, spec)


def test_segnet_refuses_an_encoder_that_does_not_halve() -> None:
    dilated = PyramidShape((4, 8, 8), (4, 8, 8), "aspp")
    with pytest.raises(MtlbenchError, match=r"twice the stride .* strides are \[4, 8, 8\]: use another head"):
        build_head(Map(1), dilated, "segnet")
