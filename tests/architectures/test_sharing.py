"""What each architecture is by its paper: formulas, counts by hand, limits, and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from runs import outcome
from torch import Tensor, nn
from torch.nn import functional

from mtlbench.contracts import Encoder, Map, Task, Vector
from mtlbench.errors import MtlbenchError
from mtlbench.gradients import GradientEngine
from mtlbench.losses import L1, BinaryCrossEntropy, CrossEntropy
from mtlbench_zoo.architectures._parallel import near_identity
from mtlbench_zoo.architectures._parts import run, sample_one
from mtlbench_zoo.architectures.adashare import AdaShare
from mtlbench_zoo.architectures.cgc import CGC
from mtlbench_zoo.architectures.cross_stitch import CrossStitch
from mtlbench_zoo.architectures.dselect_k import DSelectK, SelectK, smooth_step
from mtlbench_zoo.architectures.ltb import LTB
from mtlbench_zoo.architectures.mmoe import MMoE, _PerTask
from mtlbench_zoo.architectures.mtan import MTAN, _blocks, _cut, _joins, _unpool
from mtlbench_zoo.architectures.nddr import NDDR
from mtlbench_zoo.architectures.ple import PLE
from mtlbench_zoo.encoders.conv import Conv
from mtlbench_zoo.encoders.resnet import ResNet18
from mtlbench_zoo.encoders.unet import UNet
from mtlbench_zoo.weightings.ew import EqualWeighting
from mtlbench_zoo.weightings.mgda import MGDA

A, B, C = (
    Task("a", Map(1), BinaryCrossEntropy(), ()),
    Task("b", Vector(2), CrossEntropy(), ()),
    Task("c", Map(1), L1(), ()),
)


def conv(task: str | None = None) -> Encoder:
    return Conv(3, width=4)  # channels 4, 8, 16


def unet(task: str | None = None) -> Encoder:
    return UNet(3, depth=3, width=4)  # channels 4, 8, 16


def mixed(task: str | None = None) -> Encoder:
    """A U-Net for task a, and for b a convolutional net of two stages, twice as wide."""
    return UNet(3, depth=3, width=4) if task == "a" else Conv(3, width=8, depth=2)


def images(batch: int = 3) -> Tensor:
    return torch.rand(batch, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def reaches(value: Tensor, module: nn.Module) -> bool:
    """Whether ``value`` depends on the parameters of ``module``."""
    gradients = torch.autograd.grad(value, list(module.parameters()), allow_unused=True, retain_graph=True)
    return any(g is not None and bool(g.any()) for g in gradients)


# ---- cross-stitch and nddr -------------------------------------------------------------------------------


@pytest.mark.parametrize("per_channel", [False, True])
def test_cross_stitch_mixes_after_every_stage(per_channel: bool) -> None:
    torch.manual_seed(0)
    architecture = CrossStitch(conv, (A, B, C), per_channel=per_channel)
    for row in architecture.trunk.units.parameters():
        nn.init.normal_(row)
    features = architecture(x := images())
    streams = [x] * 3
    for stage, reading in enumerate(features.readings):
        given = torch.stack(
            [e.stages[stage](s) for e, s in zip(architecture.trunk.encoders, streams, strict=True)]
        )
        formula = "cij,jbchw->ibchw" if per_channel else "ij,jbchw->ibchw"
        streams = list(torch.einsum(formula, reading.values, given))
        assert reading.place == f"stage{stage + 1}"
        assert reading.names == ("a", "b", "c")
        for task, stream in zip("abc", streams, strict=True):
            torch.testing.assert_close(features.pyramids[task][stage], stream)
    each = (4 + 8 + 16) if per_channel else 3
    assert count(architecture) == 3 * count(conv()) + 9 * each
    assert count(architecture) - sum(p.numel() for p in architecture.shared_parameters()) == 9 * (
        16 if per_channel else 1
    )


def test_the_start_is_near_the_identity() -> None:
    expected = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]])
    torch.testing.assert_close(near_identity(3, 0.9), expected)
    assert near_identity(1, 0.9).item() == 1
    for matrix in (r.values for r in CrossStitch(conv, (A, B, C))(images()).readings):
        torch.testing.assert_close(matrix, expected)


def test_nddr_starts_as_a_cross_stitch_of_channels() -> None:
    torch.manual_seed(0)
    architecture = NDDR(conv, (A, B), own=0.8)
    x = images()
    first, second = (encoder.stages[0](x) for encoder in architecture.trunk.encoders)
    pyramid = architecture(x, ["b"]).pyramids["b"]
    joined = 0.2 * first + 0.8 * second
    centred = joined - joined.mean((0, 2, 3), keepdim=True)
    expected = functional.relu(centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt())
    torch.testing.assert_close(pyramid[0], expected, rtol=1e-4, atol=1e-5)
    layers = sum(2 * (2 * c * c + 2 * c) for c in (4, 8, 16))
    assert count(architecture) == 2 * count(conv()) + layers


@pytest.mark.parametrize("cls", [CrossStitch, NDDR])
def test_encoders_of_unequal_shape_are_refused(cls: Any) -> None:
    with pytest.raises(MtlbenchError, match=r"'a' has channels \[4, 8, 16\] at strides \[1, 2, 4\], 'b' has"):
        cls(mixed, (A, B))
    with pytest.raises(MtlbenchError, match=r"own must be in 0\.\.1, found 1\.5"):
        cls(conv, (A, B), own=1.5)


# ---- mtan ------------------------------------------------------------------------------------------------


def test_stages_are_cut_after_their_first_block() -> None:
    def cuts(encoder: Encoder) -> list[tuple[int, int]]:
        pairs = zip(encoder.stages, encoder.shape.channels, strict=True)
        return [(_cut(stage, channels), len(_blocks(stage))) for stage, channels in pairs]

    assert cuts(unet()) == [(5, 8), (4, 7), (4, 7)]  # a stage is [pooling] conv bn relu | conv bn relu
    assert cuts(conv()) == [(0, 5), (0, 3), (0, 3)]  # one convolution each
    assert cuts(ResNet18(3)) == [(0, 4), (2, 3), (1, 2), (1, 2), (1, 2)]
    narrow = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 1), nn.ReLU())
    later = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.ReLU())
    assert _cut(narrow, 4) == _cut(later, 4) == _cut(nn.Conv2d(3, 4, 1), 4) == 0


def test_mtan_is_its_formula() -> None:
    torch.manual_seed(0)
    architecture = MTAN(unet, (A, B), reduction=1).eval()
    for module in architecture.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
    x = images()
    features = architecture(x, ["b"])
    attended = None
    for level, stage in enumerate(architecture.encoder.stages):
        cut = 5 if level == 0 else 4
        u = stage[:cut](x)
        x = p = stage[cut:](u)
        module = architecture.attention[1][level]
        if attended is not None:
            passed = architecture.passing[level - 1](functional.max_pool2d(attended, 2))
            assert module.norm is not None
            u = torch.cat([u, module.norm(passed).relu()], 1)
        g, bn, _, h, last = module.mask
        mask = torch.sigmoid(last(h(bn(g(u)).relu())))
        attended = mask * p
        torch.testing.assert_close(features.pyramids["b"][level], attended)
        reading = features.readings[level]
        assert (reading.kind, reading.place, reading.task) == ("attention", f"stage{level + 1}", "b")
        torch.testing.assert_close(reading.values, mask)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
@pytest.mark.parametrize("names", [None, ["c", "a"]])
def test_mtan_joins_hidden_layers_only_to_be_faster(
    dtype: torch.dtype, error: float, names: list[str] | None
) -> None:
    def trained(apart: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
        torch.manual_seed(0)
        architecture = MTAN(unet, (A, B, C)).to(dtype)
        architecture.pulled_apart = apart
        for module in architecture.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
        x = images().to(dtype).requires_grad_()
        features = architecture(x, names)
        levels = [level for pyramid in features.pyramids.values() for level in pyramid]
        draw = torch.Generator().manual_seed(1)
        seeds = [torch.randn(level.shape, generator=draw, dtype=dtype) for level in levels]
        found = [p for p in [x, *architecture.parameters()] if p.requires_grad]
        gradients = torch.autograd.grad(levels, found, seeds, allow_unused=True, retain_graph=True)
        size = len(levels) // len(features.pyramids)
        one = torch.autograd.grad(levels[:size], found, seeds[:size], allow_unused=True)
        pulled = zip([*found, *found], [*gradients, *one], strict=True)
        given = [*levels, *(r.values for r in features.readings)]
        given += [torch.zeros_like(p) if g is None else g for p, g in pulled]
        return given, architecture.state_dict()

    (apart, state), (joined, joined_state) = trained(True), trained(False)
    assert any(not torch.equal(a, b) for a, b in zip(apart, joined, strict=True))  # it did join
    torch.testing.assert_close(joined, apart, rtol=error, atol=error * 50)
    torch.testing.assert_close(joined_state, state, rtol=error, atol=error)


def test_mtan_joins_nothing_where_norms_are_replaced_or_tasks_pulled_apart() -> None:
    architecture = MTAN(unet, (A, B, C))
    parts = [stages[1] for stages in architecture.attention]
    assert _joins(parts)
    assert not _joins(parts[:1])
    norm = parts[2].norm
    assert norm is not None
    norm.forward = norm.forward  # type: ignore[method-assign]  # as for norms over several processes
    assert not _joins(parts)
    heads = {name: nn.Identity() for name in "abc"}
    for weighting, apart in ((MGDA(), True), (EqualWeighting(), False)):
        GradientEngine(architecture, heads, (A, B, C), weighting)
        assert architecture.pulled_apart is apart


@pytest.mark.parametrize("reduction", [1, 4])
def test_mtan_parameter_count_by_hand(reduction: int) -> None:
    channels = (16, 32, 64)
    inner = [max(c // reduction, 8) for c in channels]

    def encoder(task: str | None = None) -> Encoder:
        return UNet(3, depth=3, width=16)

    passing = sum(9 * c * w for c, w in zip(channels, inner[1:], strict=False))
    masks = 0
    for level, (c, w) in enumerate(zip(channels, inner, strict=True)):
        reads = c + (w if level else 0)
        masks += reads * w + 2 * w + w * c + 2 * c + (2 * w if level else 0)
    architecture = MTAN(encoder, (A, B, C), reduction=reduction)
    assert count(architecture) == count(encoder()) + passing + 3 * masks
    assert sum(p.numel() for p in architecture.shared_parameters()) == count(encoder()) + passing


def test_mtan_decoder_unpools_to_where_the_maxima_were() -> None:
    level = torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 2], [3, 0, 0, 0], [0, 0, 4, 0]])[None, None]
    x = torch.tensor([[1.0, 2], [3, 4]])[None, None]
    torch.testing.assert_close(_unpool(x, level), level)
    assert _unpool(level, level) is level
    assert _unpool(x, torch.zeros(1, 1, 5, 5)).shape == (1, 1, 5, 5)


def test_mtan_decoder_is_allowed_where_results_must_be_reproducible() -> None:
    torch.use_deterministic_algorithms(True)
    features = MTAN(unet, (A, B, C), decoder=True)(images())
    sum(pyramid[0].sum() for pyramid in features.pyramids.values()).backward()


def test_mtan_decoder_serves_maps_alone() -> None:
    architecture = MTAN(unet, (A, B, C), decoder=True)
    features = architecture(images())
    assert [len(features.pyramids[task]) for task in "abc"] == [1, 3, 1]
    assert features.pyramids["a"][0].shape == (3, 4, 16, 24)
    places = [reading.place for reading in features.readings if reading.task == "c"]
    assert places == [*(f"stage{i}" for i in (1, 2, 3)), *(f"decoder stage{i}" for i in (3, 2, 1))]
    shared = {id(p) for p in architecture.shared_parameters()}
    assert architecture.decoder is not None
    assert {id(p) for p in architecture.decoder.steps.parameters()} <= shared
    alone = MTAN(unet, (A, B), decoder=True)  # its decoder serves one task
    assert alone.decoder is not None
    assert not {id(p) for p in alone.shared_parameters()} & {id(p) for p in alone.decoder.parameters()}
    with pytest.raises(MtlbenchError, match="none of the tasks b wants a map; leave it out"):
        MTAN(unet, (B,), decoder=True)


@pytest.mark.parametrize("size", [(16, 24), (18, 26), (17, 23)])
@pytest.mark.parametrize("decoder", [False, True])
def test_mtan_takes_odd_sizes(size: tuple[int, int], decoder: bool) -> None:
    x = torch.rand(2, 3, *size)
    for encoder in (unet, conv):
        pyramids = MTAN(encoder, (A, B), decoder=decoder)(x).pyramids
        levels = encoder()(x)
        for level, stage in zip(pyramids["b"], levels, strict=True):
            assert level.shape == stage.shape
        assert pyramids["a"][0].shape == levels[0].shape


# ---- mmoe ------------------------------------------------------------------------------------------------


def test_mmoe_goes_on_from_the_last_sharing_point_in_stages_of_each_task() -> None:
    torch.manual_seed(0)
    architecture = MMoE(conv, (A, B), experts=2, share_at=[1, "stage2"])
    features = architecture(x := images())
    layer = architecture.layer
    assert not isinstance(layer, _PerTask)
    first = [stages[0](x) for stages in layer.before.experts]
    toward = [
        torch.einsum(
            "be,ebchw->bchw", gate(torch.cat([f.mean((2, 3)) for f in first], 1)), torch.stack(first)
        )
        for gate in layer.before.points[0]
    ]
    second = [stages[1](h) for stages, h in zip(layer.before.experts, toward, strict=True)]
    gate = layer.gates[1](torch.cat([f.mean((2, 3)) for f in second], 1))
    levels = [torch.einsum("be,ebchw->bchw", gate, torch.stack(given)) for given in (first, second)]
    levels.append(layer.towers[1][0](levels[-1]))
    for level, expected in zip(features.pyramids["b"], levels, strict=True):
        torch.testing.assert_close(level, expected)
    assert [(r.place, r.task) for r in features.readings] == [
        ("stage1, to expert1", None), ("stage1, to expert2", None), ("stage2", "a"), ("stage2", "b")
    ]  # fmt: skip
    stages = [count(stage) for stage in conv().stages]
    gates = 2 * (2 * 4 * 2 + 2) + 2 * (2 * 8 * 2 + 2)
    assert count(architecture) == 2 * (stages[0] + stages[1]) + 2 * stages[2] + gates


def test_mmoe_with_an_expert_a_task_joins_different_encoders() -> None:
    torch.manual_seed(0)
    architecture = MMoE(mixed, (A, B), experts="per-task", share_at=[1, "last"])
    x = images()
    features = architecture(x)
    for task in "ab":
        shape = architecture.shape(task)
        for level, c, s in zip(features.pyramids[task], shape.channels, shape.strides, strict=True):
            assert level.shape == (3, c, 16 // s, 24 // s)
    assert [(r.place, r.task) for r in features.readings] == [
        ("stage1", "a"), ("stage1", "b"), ("stage3", "a"), ("stage2", "b")
    ]  # fmt: skip
    # 1x1 convolutions stand where channels differ: 4 and 8 after stage 1; 16 and 16 after the last.
    converters = (8 * 4 + 4) + (4 * 8 + 8)
    gates = 2 * (12 * 2 + 2) + 2 * (32 * 2 + 2)
    assert count(architecture) == count(mixed("a")) + count(mixed("b")) + converters + gates
    one, other = mixed("a"), mixed("b")
    layer = architecture.layer
    assert isinstance(layer, _PerTask)
    for encoder, stages in zip((one, other), layer.before.experts, strict=True):
        encoder.stages.load_state_dict(stages.state_dict())
    first, second = one.stages[0](x), other.stages[0](x)
    point = layer.before.points[0]
    gate = point.gates[0](torch.cat([first.mean((2, 3)), second.mean((2, 3))], 1))[:, :, None, None, None]
    fitting = functional.interpolate(point.converters[0][1](second), size=(16, 24), mode="bilinear")
    torch.testing.assert_close(features.pyramids["a"][0], gate[:, 0] * first + gate[:, 1] * fitting)


def test_mmoe_refuses_what_cannot_be() -> None:
    for share_at, message in (
        ([4], r"share_at must name stages of the encoder, found 4; it has the stages 1 to 3"),
        (["stage0"], "found 'stage0'"),
        ([], "share_at must be a list of one stage or more"),
        ([3, "last"], r"share_at=\[3, 'last'\] names one stage twice in an encoder of 3 stages"),
    ):
        with pytest.raises(MtlbenchError, match=message):
            MMoE(conv, (A, B), share_at=share_at)
    with pytest.raises(
        MtlbenchError, match="number of tasks with experts=per-task must be at least 2, found 1"
    ):
        MMoE(conv, (A,), experts="per-task")
    with pytest.raises(
        MtlbenchError, match=r"share_at=\[2, 'last'\] names one stage twice in an encoder of 2 stages"
    ):
        MMoE(mixed, (A, B), experts="per-task", share_at=[2, "last"])


# ---- cgc and ple -----------------------------------------------------------------------------------------


def test_cgc_parameter_count_by_hand() -> None:
    architecture = CGC(conv, (A, B, C), task_experts=2, shared_experts=3)
    gates = 3 * (5 * 16 * 5 + 5)
    assert count(architecture) == (3 * 2 + 3) * count(conv()) + gates
    assert sum(p.numel() for p in architecture.shared_parameters()) == 3 * count(conv())


def test_cgc_keeps_the_experts_of_a_task_to_itself() -> None:
    architecture = CGC(conv, (A, B))
    level = architecture.levels[0]
    features = architecture(images())
    value = features.pyramids["a"][-1].square().sum()
    assert reaches(value, level.own[0])
    assert reaches(value, level.shared)
    assert not reaches(value, level.own[1])
    assert features.readings[0].names == ("a 1", "shared 1")
    assert features.readings[0].values.shape == (3, 2)


def test_ple_shares_between_levels_through_the_shared_gate() -> None:
    """The experts of a task reach others one level later, through the shared stream, as in the paper."""
    architecture = PLE(conv, (A, B), levels=2)
    first, second = architecture.levels
    assert (list(first.stages), list(second.stages)) == ([0, 1], [2])
    features = architecture(images(), ["a"])
    value = features.pyramids["a"][-1].square().sum()
    assert first.shared_gate is not None
    assert second.shared_gate is None
    for part in (first.own[1], first.shared, first.shared_gate, first.gates[0], second.own[0], second.shared):
        assert reaches(value, part)
    assert not reaches(value, first.gates[1])
    assert not reaches(value, second.own[1])
    assert [(r.place, r.task, r.values.shape[1]) for r in features.readings] == [
        ("stage2", "a", 2), ("stage2", "b", 2), ("stage2, to shared", None, 3), ("stage3", "a", 2)
    ]  # fmt: skip
    assert features.readings[2].names == ("a 1", "b 1", "shared 1")
    x = images()
    given = [run(stages, x)[-1] for stages in (first.own[0][0], first.own[1][0], first.shared[0])]
    share = first.shared_gate(torch.cat([feature.mean((2, 3)) for feature in given], 1))
    _, common = first([x, x], x, [0, 1])
    assert common is not None
    torch.testing.assert_close(common[0], torch.einsum("be,ebchw->bchw", share, torch.stack(given)))
    # In the first level gates read what their experts gave, later the stream that comes in.
    gates = 2 * (2 * 8 * 2 + 2) + (3 * 8 * 3 + 3) + 2 * (8 * 2 + 2)
    assert count(architecture) == 3 * count(conv()) + gates


def test_ple_is_refused_where_levels_and_stages_do_not_fit() -> None:
    with pytest.raises(MtlbenchError, match="levels must be at least 2, found 1; with one level use 'cgc'"):
        PLE(conv, (A, B), levels=1)
    with pytest.raises(
        MtlbenchError, match=r"levels must be at most 3 \(the number of the encoder's stages\)"
    ):
        PLE(conv, (A, B), levels=4)
    with pytest.raises(MtlbenchError, match="shared_experts must be at least 1, found 0"):
        CGC(conv, (A, B), shared_experts=0)


# ---- dselect-k -------------------------------------------------------------------------------------------


def test_smooth_step_is_the_cubic_of_the_paper() -> None:
    z = torch.linspace(-3, 3, 601, dtype=torch.float64, requires_grad=True)
    for gamma in (0.5, 1.0, 2.0):
        cubic = -2 / gamma**3 * z**3 + 3 / (2 * gamma) * z + 0.5
        expected = torch.where(z <= -gamma / 2, 0.0, torch.where(z >= gamma / 2, 1.0, cubic))
        torch.testing.assert_close(smooth_step(z, gamma), expected)
        (slope,) = torch.autograd.grad(smooth_step(z, gamma).sum(), z)
        assert (slope >= -1e-12).all()
        assert slope[(z.abs() - gamma / 2).abs() < 1e-9].abs().max() < 1e-9  # smooth where it begins


@pytest.mark.parametrize("experts", [2, 3, 4, 5, 7, 8])
def test_a_selector_reaches_every_expert_and_no_other(experts: int) -> None:
    gate = SelectK(experts, 1, 1.0, None)
    assert gate.static is not None
    found = set()
    for code in range(2**gate.bits):
        bits = [1.0 if code >> bit & 1 else -1.0 for bit in range(gate.bits)]
        gate.static.data = torch.tensor([0.0, *bits])
        weights, choice = gate(torch.zeros(2, 1))
        torch.testing.assert_close(weights.sum(1), torch.ones(2))
        assert choice.shape == (2, 1, experts)
        assert weights.count_nonzero() == 2
        found.add(int(weights[0].argmax()))
        assert code >= experts or int(weights[0].argmax()) == code
    assert found == set(range(experts))


def test_at_most_k_experts_are_left_when_the_bits_are_certain() -> None:
    torch.manual_seed(0)
    for gating in ("example", "static"):
        architecture = DSelectK(conv, (A, B), experts=8, k=3, gating=gating)
        for gate in architecture.task_gates:
            part = gate.static if gate.linear is None else gate.linear.bias
            assert isinstance(part, Tensor)
            part.data = torch.randn(3 * 4).sign() * 20
        features = architecture(images())
        for reading in features.readings:
            assert 1 <= (reading.values > 0).sum(1).max() <= 3
        assert features.penalty is not None
        assert features.penalty.item() == pytest.approx(0, abs=1e-9)  # what is certain has no entropy


def test_the_penalty_is_the_weighted_entropy() -> None:
    torch.manual_seed(0)
    architecture = DSelectK(conv, (A, B), experts=4, k=2, gating="static", entropy=0.3)
    for gate in architecture.task_gates:
        assert isinstance(gate.static, nn.Parameter)
        nn.init.uniform_(gate.static, -0.4, 0.4)
    total = 0.0
    for gate in architecture.task_gates:
        assert isinstance(gate, SelectK)
        for selector in gate(torch.zeros(1, 1))[1][0].tolist():
            total -= sum(r * math.log(r) for r in selector)
    penalty = architecture(images()).penalty
    assert penalty is not None
    assert penalty.item() == pytest.approx(0.3 * total / 2, rel=1e-5)
    assert DSelectK(conv, (A, B), entropy=0)(images()).penalty is None


@pytest.mark.parametrize("weight", ["ew", "mgda"])
def test_the_regulariser_is_logged_and_reaches_the_gates(weight: str, experiment: Callable[..., Any]) -> None:
    """Under a strong weight the selectors become certain, which they do not without it."""
    penalties = {}
    for entropy in (0.001, 10.0):
        arch = f"dselect-k[gating=static,entropy={entropy}]"
        found = outcome(experiment(arch=arch, weight=weight, encoder="conv[width=4]", epochs=4, lr=0.02))
        assert found.status == "ok", found.reason
        penalties[entropy] = [row["penalty"] / entropy for row in found.history]
    assert penalties[0.001][0] == pytest.approx(2 * math.log(4), rel=0.05)  # two selectors, almost undecided
    assert penalties[10.0][-1] < 0.9 * penalties[0.001][-1]


def test_dselect_refuses_what_cannot_be() -> None:
    for parameters, message in (
        ({"experts": 1}, "experts must be at least 2, found 1"),
        ({"k": 5}, r"k must be in 1\.\.4 \(the number of experts\), found 5"),
        ({"gamma": 0.0}, "gamma must be above 0 and finite, found 0.0"),
        ({"entropy": -1.0}, "entropy must be at least 0 and finite, found -1.0"),
    ):
        with pytest.raises(MtlbenchError, match=message):
            DSelectK(conv, (A, B), **parameters)  # type: ignore[arg-type]


# ---- ltb -------------------------------------------------------------------------------------------------


def test_choices_have_the_probabilities_of_the_softmax() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([1.0, 0.0, -1.0])
    drawn = torch.stack([sample_one(logits, 0.7) for _ in range(4000)])
    assert ((drawn - drawn.round()).abs() < 1e-6).all()
    torch.testing.assert_close(drawn.sum(1), torch.ones(4000))
    torch.testing.assert_close(drawn.mean(0), logits.softmax(0), atol=0.03, rtol=0)


def test_ltb_samples_trees_in_training_and_follows_one_in_eval() -> None:
    torch.manual_seed(0)
    architecture = LTB(conv, (A, B, C))
    x = images()
    one, other = architecture(x), architecture(x)
    assert any(not torch.equal(one.pyramids[task][-1], other.pyramids[task][-1]) for task in "abc")
    with torch.no_grad():  # a and b meet in node 1 of stage 2, c goes its own way until the first stage
        architecture.parents[0].copy_(torch.tensor([[0.0, 5, 0], [5, 0, 0], [5, 0, 0]]))
        architecture.parents[1].copy_(torch.tensor([[0.0, 5, 0], [0, 5, 0], [0, 0, 5]]))
        for leaf, node in zip(architecture.leaves, (0, 1, 2), strict=True):
            leaf[node] = 9
    architecture.eval()
    runs = [0] * 9

    def counting(number: int) -> Any:
        def hook(*_: Any) -> None:
            runs[number] += 1

        return hook

    for i, node in enumerate(architecture.nodes):
        for j, stage in enumerate(node.stages):
            stage.register_forward_hook(counting(3 * i + j))
    features = architecture(x)
    paths = {"a": (0, 1, 0), "b": (0, 1, 1), "c": (0, 2, 2)}
    assert runs == [1, 0, 1, 0, 1, 1, 0, 1, 1]  # a node that two tasks share is run once
    for task, path in paths.items():
        expected = x
        for level, node in enumerate(path):
            expected = architecture.nodes[node].stages[level](expected)
            torch.testing.assert_close(features.pyramids[task][level], expected)
        seen = [int(r.values[0].argmax()) for r in features.readings if r.task == task]
        assert tuple(seen) == path
    assert features.pyramids["a"][1] is features.pyramids["b"][1]


def test_a_path_in_training_leads_through_the_nodes_that_were_sampled() -> None:
    torch.manual_seed(3)
    architecture = LTB(conv, (A, B))
    features = architecture(x := images())
    for task in "ab":
        path = [int(r.values[0].argmax()) for r in features.readings if r.task == task]
        first = architecture.nodes[path[0]].stages[0](x)
        torch.testing.assert_close(features.pyramids[task][0], first, rtol=1e-4, atol=1e-5)
        stages = [architecture.nodes[node].stages[level] for level, node in enumerate(path)]
        for level, expected in zip(features.pyramids[task], run(stages, x), strict=True):
            torch.testing.assert_close(level, expected, rtol=1e-4, atol=1e-5)


def test_the_temperature_falls_with_the_root_of_the_epoch() -> None:
    architecture = LTB(conv, (A, B), temperature=6)
    for epoch, expected in ((0, 6.0), (3, 3.0), (8, 2.0)):
        architecture.start_epoch(epoch, 10)
        assert float(architecture._tau) == pytest.approx(expected)


def test_a_run_tells_ltb_the_epoch_and_moves_its_choices(
    experiment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told, moved = [], []

    def start_epoch(self: LTB, epoch: int, epochs: int) -> None:
        told.append((epoch, epochs))
        moved.append(min(float(p.detach().abs().max()) for p in [*self.parents, *self.leaves]))

    monkeypatch.setattr(LTB, "start_epoch", start_epoch)
    assert outcome(experiment(arch="ltb", encoder="conv[width=4]", lr=0.05)).status == "ok"
    assert told == [(0, 3), (1, 3), (2, 3)]
    assert moved[0] == 0
    assert moved[2] > 0.01


def test_ltb_refuses_what_cannot_be() -> None:
    with pytest.raises(
        MtlbenchError, match="nodes must be at least 2, found 1; with one node a stage use 'hps'"
    ):
        LTB(conv, (A, B), nodes=1)
    with pytest.raises(MtlbenchError, match="temperature must be above 0 and finite, found 0"):
        LTB(conv, (A, B), temperature=0)
    assert len(LTB(conv, (A,)).nodes) == 2
    assert count(LTB(conv, (A, B), nodes=3)) == 3 * count(conv()) + 2 * 9 + 2 * 3


# ---- adashare --------------------------------------------------------------------------------------------


def decided(*rows: tuple[float, float]) -> AdaShare:
    """AdaShare over three stages for the tasks a, b, c, with these choices about the last two."""
    torch.manual_seed(0)
    architecture = AdaShare(unet, (A, B, C), sparsity=0.3, sharing=0.7)
    with torch.no_grad():
        for choice, row in zip(architecture.choices, rows, strict=True):
            choice.copy_(torch.tensor(row) / 10)  # a logit is ten times its parameter
    return architecture


def test_adashare_follows_the_choices_and_runs_what_is_shared_once() -> None:
    architecture = decided((2, 3), (2, -1), (-1, 2)).eval()
    first, second, third = architecture.encoder.stages
    calls = dict.fromkeys("123", 0)
    for name, stage in zip("123", architecture.encoder.stages, strict=True):
        stage.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    found = architecture(x := images()).pyramids
    assert calls == {"1": 1, "2": 1, "3": 2}  # a and b share stage 2
    assert found["a"][1] is found["b"][1]
    half = [functional.max_pool2d(level, 2) for level in (found["a"][0], found["b"][1])]
    for task, level, expected in (
        ("a", 0, first(x)),
        ("a", 1, second(found["a"][0])),
        ("a", 2, third(found["a"][1])),
        ("b", 2, architecture.skips[1](half[1])),
        ("c", 1, architecture.skips[0](half[0])),
        ("c", 2, third(found["c"][1])),
    ):
        torch.testing.assert_close(found[task][level], expected)
    shortcuts = (4 * 8 + 2 * 8) + (8 * 16 + 2 * 16)
    assert count(architecture) == count(unet()) + shortcuts + 3 * 2
    for reading in architecture(x).readings:
        p = (10 * architecture.choices["abc".index(str(reading.task))].detach()).sigmoid()
        torch.testing.assert_close(reading.values[0, 0], p[int(reading.place[-1]) - 2])
        assert reading.names == ("run", "skip")


def test_adashare_without_a_choice_yet_is_hard_sharing() -> None:
    architecture = decided((0, 0), (0, 0), (0, 0))
    architecture.start_epoch(0, 10)
    for training in (True, False):
        features = architecture.train(training)(images())
        assert all(a is b for a, b in zip(features.pyramids["a"], features.pyramids["c"], strict=True))
        assert features.penalty is None
    for level, expected in zip(features.pyramids["a"], architecture.encoder(images()), strict=True):
        torch.testing.assert_close(level, expected)


def test_adashare_learns_from_the_last_stage_on_and_cools() -> None:
    architecture = AdaShare(unet, (A, B), warm_up=0.2, curriculum=0.4, temperature=5)
    seen = []
    for epoch in range(10):
        architecture.start_epoch(epoch, 10)
        seen.append(architecture._learned)
        pyramids = architecture(images()).pyramids
        shared = [a is b for a, b in zip(pyramids["a"], pyramids["b"], strict=True)]
        assert shared == [True] * (3 - seen[-1]) + [False] * seen[-1]
    assert seen == [0, 0, 1, 1, 2, 2, 2, 2, 2, 2]
    architecture.start_epoch(2, 10)
    assert float(architecture._tau) == pytest.approx(5)
    architecture.start_epoch(6, 10)
    assert float(architecture._tau) == pytest.approx(5 / 300**0.5)


def test_a_cold_choice_is_drawn_with_its_probability() -> None:
    architecture = decided((1, -1), (0, 0), (0, 0))
    architecture._tau.fill_(1e-4)
    torch.manual_seed(0)
    ran = torch.zeros(2)
    for _ in range(300):
        pyramid = architecture(x := images(1), ["a"]).pyramids["a"]
        level = architecture.encoder.stages[0](x)
        for index in (1, 2):
            level = architecture.encoder.stages[index](pyramid[index - 1])
            ran[index - 1] += torch.allclose(level, pyramid[index], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ran / 300, torch.tensor([1.0, -1.0]).sigmoid(), atol=0.08, rtol=0)


def test_the_penalty_of_adashare_by_hand() -> None:
    rows = ((2.0, 3.0), (2.0, -1.0), (-1.0, 2.0))
    architecture = decided(*rows)
    p = [[1 / (1 + math.exp(-z)) for z in row] for row in rows]
    sparsity = sum(math.log(value) for row in p for value in row)
    pairs = [(p[0], p[1]), (p[0], p[2]), (p[1], p[2])]
    sharing = sum(abs(one[0] - other[0]) for one, other in pairs) / 3  # stage 2 of 3; the last counts for 0
    penalty = architecture(images()).penalty
    assert penalty is not None
    assert penalty.item() == pytest.approx(0.3 * sparsity + 0.7 * sharing, rel=1e-5)
    architecture.start_epoch(2, 10)  # the last stage alone
    penalty = architecture(images(), ["b"]).penalty
    assert penalty is not None
    assert penalty.item() == pytest.approx(0.3 * sum(math.log(row[1]) for row in p), rel=1e-5)
    assert AdaShare(unet, (A, B), sparsity=0, sharing=0)(images()).penalty is None


@pytest.mark.parametrize("encoder", [unet, conv])
def test_adashare_skips_stages_of_odd_sizes(encoder: Any) -> None:
    architecture = AdaShare(encoder, (A,)).eval()
    for number in (1, -1):
        nn.init.constant_(architecture.choices[0], number)
        sizes = [level.shape for level in architecture(torch.rand(1, 3, 17, 23)).pyramids["a"]]
        assert sizes == [level.shape for level in encoder()(torch.rand(1, 3, 17, 23))]


def test_adashare_refuses_what_cannot_be() -> None:
    for parameters, message in (
        ({"sparsity": -1.0}, "sparsity must be at least 0 and finite, found -1.0"),
        ({"warm_up": 1.5}, r"warm_up must be in 0\.\.1, found 1.5"),
        ({"temperature": 0.0}, "temperature must be above 0 and finite, found 0.0"),
    ):
        with pytest.raises(MtlbenchError, match=message):
            AdaShare(conv, (A, B), **parameters)
    with pytest.raises(MtlbenchError, match="number of the encoder's stages must be at least 2, found 1"):
        AdaShare(lambda task=None: Conv(3, depth=1), (A, B))
