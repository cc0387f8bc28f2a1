"""The architectures of the box: what they share, what they train, what they give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mtlbench.contracts import Architecture, Encoder, EncoderFactory, Map, Task, Vector
from mtlbench.errors import MtlbenchError
from mtlbench.heads import build_head
from mtlbench.losses import L1, BinaryCrossEntropy, CrossEntropy
from mtlbench_zoo.architectures._parts import mix_levels, run
from mtlbench_zoo.architectures.adashare import AdaShare
from mtlbench_zoo.architectures.cgc import CGC
from mtlbench_zoo.architectures.cross_stitch import CrossStitch
from mtlbench_zoo.architectures.dselect_k import DSelectK
from mtlbench_zoo.architectures.hps import HardParameterSharing
from mtlbench_zoo.architectures.ltb import LTB
from mtlbench_zoo.architectures.mmoe import MMoE, _Common
from mtlbench_zoo.architectures.mtan import MTAN
from mtlbench_zoo.architectures.nddr import NDDR
from mtlbench_zoo.architectures.ple import PLE
from mtlbench_zoo.architectures.stl import SingleTask
from mtlbench_zoo.encoders.conv import Conv
from mtlbench_zoo.encoders.unet import UNet

TASKS = (
    Task("segmentation", Map(1), BinaryCrossEntropy(), ()),
    Task("classification", Vector(2), CrossEntropy(), ()),
    Task("bbox", Vector(4), L1(), ()),
    Task("type.depth", Map(1), L1(), ()),  # a name that no module could have
    *(Task(f"attribute {number}", Vector(1), BinaryCrossEntropy(), ()) for number in range(6)),
)
Make = Callable[[EncoderFactory, Sequence[Task]], Architecture]
MAKES: dict[str, Make] = {
    "stl": SingleTask,
    "hps": HardParameterSharing,
    "mmoe": MMoE,
    "mmoe-2": partial(MMoE, experts=2),
    "mmoe-context": partial(MMoE, gate="context"),
    "mmoe-early": partial(MMoE, share_at=[1, "stage2"]),
    "mmoe-every-stage": partial(MMoE, share_at=[1, 2, "last"]),
    "mmoe-per-task": partial(MMoE, experts="per-task", share_at=[2, "last"]),
    "mmoe-per-task-early": partial(MMoE, experts="per-task", share_at=[1]),
    "cross-stitch": CrossStitch,
    "cross-stitch-per-channel": partial(CrossStitch, per_channel=True),
    "nddr": NDDR,
    "mtan": MTAN,
    "mtan-decoder": partial(MTAN, decoder=True),
    "cgc": CGC,
    "cgc-2": partial(CGC, task_experts=2, gate="context"),
    "ple": PLE,
    "ple-3": partial(PLE, levels=3, shared_experts=2),
    "dselect-k": DSelectK,
    "dselect-k-static": partial(DSelectK, experts=3, gating="static"),
    "ltb": LTB,
    "adashare": AdaShare,
}
ONE_TASK_REFUSED = ("mmoe-per-task", "mmoe-per-task-early")
every_architecture = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES.keys())
every_count = pytest.mark.parametrize("count", [1, 2, 3, 4])
every_pair = pytest.mark.parametrize(
    ("make", "count"),
    [
        pytest.param(make, count, id=f"{name}-{count}")
        for name, make in MAKES.items()
        for count in (1, 2, 3, 4, 10)
        if count > 1 or name not in ONE_TASK_REFUSED
    ],
)


def unet(task: str | None = None) -> Encoder:
    return UNet(3, depth=3, width=4)


def conv(task: str | None = None) -> Encoder:
    return Conv(3, width=4)


def build(make: Make, count: int = 3, encoder: EncoderFactory = unet) -> Architecture:
    torch.manual_seed(0)
    return make(encoder, TASKS[:count])


def images(batch: int = 3) -> Tensor:
    return torch.rand(batch, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@every_pair
def test_pyramids_have_the_stated_shape(make: Make, count: int) -> None:
    architecture = build(make, count)
    features = architecture(images())
    assert list(features.pyramids) == [task.name for task in TASKS[:count]]
    for task, pyramid in features.pyramids.items():
        shape = architecture.shape(task)
        for stage, channels, stride in zip(pyramid, shape.channels, shape.strides, strict=True):
            assert stage.shape == (3, channels, 16 // stride, 24 // stride)
    assert (features.shared is not None) == architecture.shares_features
    assert (features.penalty is not None) == isinstance(architecture, DSelectK | AdaShare)


@every_pair
def test_every_parameter_is_trained_from_the_first_step(make: Make, count: int) -> None:
    """By heads, which need not read all stages. Only ltb, which samples its branches, needs some steps."""
    architecture = build(make, count, conv if count % 2 else unet)
    named = dict(architecture.named_parameters())
    assert all(p.requires_grad for p in named.values())
    heads = [build_head(task.output, architecture.shape(task.name)) for task in TASKS[:count]]
    untrained = set(named)
    for _ in range(200 if isinstance(architecture, LTB) else 1):
        features = architecture(images())
        total = torch.zeros(())
        for task, head in zip(TASKS, heads, strict=False):
            output = head(features.pyramids[task.name], (16, 24))
            total = total + (output * torch.randn_like(output)).sum()
        gradients = torch.autograd.grad(total, list(named.values()))
        untrained -= {name for name, g in zip(named, gradients, strict=True) if g.abs().max() > 1e-8}
        if not untrained:
            break
    assert not untrained


@every_architecture
def test_a_subset_of_tasks_gives_the_same_features(make: Make) -> None:
    architecture = build(make).eval()
    x = images()
    whole = architecture(x).pyramids
    for names in (["bbox"], ["bbox", "segmentation"], list(whole)):
        part = architecture(x, names).pyramids
        assert list(part) == names
        for name in names:
            for ours, theirs in zip(part[name], whole[name], strict=True):
                torch.testing.assert_close(ours, theirs)


@every_architecture
def test_eval_is_deterministic_and_survives_a_round_trip(make: Make) -> None:
    architecture = build(make)
    architecture(images(8))  # moves the batch statistics
    architecture.eval()
    torch.manual_seed(99)
    other = make(unet, TASKS[:3])
    other.load_state_dict(architecture.state_dict())
    other.eval()
    first, again, loaded = architecture(images()), architecture(images()), other(images())
    for name, pyramid in first.pyramids.items():
        for a, b, c in zip(pyramid, again.pyramids[name], loaded.pyramids[name], strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)


@every_architecture
def test_shared_parameters_are_those_that_serve_several_tasks(make: Make) -> None:
    """Taken from the graph: a parameter is shared where more than one task reaches it."""
    architecture = build(make, 4)
    pyramids = architecture(images()).pyramids
    named = dict(architecture.named_parameters())
    reached = dict.fromkeys(named, 0)
    for pyramid in pyramids.values():
        value = sum((stage * torch.randn_like(stage)).sum() for stage in pyramid)
        assert isinstance(value, Tensor)
        gradients = torch.autograd.grad(value, list(named.values()), allow_unused=True, retain_graph=True)
        for name, gradient in zip(named, gradients, strict=True):
            reached[name] += gradient is not None
    shared = {id(p) for p in architecture.shared_parameters()}
    assert {name for name, p in named.items() if id(p) in shared} == {n for n, k in reached.items() if k > 1}
    assert min(reached.values()) == 1 or isinstance(architecture, HardParameterSharing)
    assert len(shared) == len(list(architecture.shared_parameters()))


@every_architecture
def test_memory_format_of_the_encoder_is_kept(make: Make) -> None:
    for pyramid in build(make)(images()).pyramids.values():
        assert all(stage.is_contiguous(memory_format=torch.channels_last) for stage in pyramid)


def test_stl_shares_nothing() -> None:
    architecture = build(SingleTask)
    assert list(architecture.shared_parameters()) == []
    assert parameters(architecture) == 3 * parameters(unet())
    pyramids = architecture(images()).pyramids
    assert not any(torch.equal(pyramids[a][0], pyramids[b][0]) for a, b in combinations(pyramids, 2))


def test_hps_gives_one_object_to_all() -> None:
    architecture = build(HardParameterSharing)
    features = architecture(images())
    assert features.shared is not None
    assert all(pyramid is features.shared for pyramid in features.pyramids.values())
    assert parameters(architecture) == parameters(unet())
    assert len(list(architecture.shared_parameters())) == len(list(architecture.parameters()))


@pytest.mark.parametrize("experts", [2, 3, 5])
@every_count
def test_mmoe_parameter_count_by_hand(experts: int, count: int) -> None:
    width = experts * 16  # features that a gate reads: the last stage of every expert
    trunk = experts * parameters(unet())
    gates = count * (width * experts + experts)
    context = count * (width * width + width)
    assert parameters(MMoE(unet, TASKS[:count], experts)) == trunk + gates
    assert parameters(MMoE(unet, TASKS[:count], experts, gate="context")) == trunk + gates + context


@pytest.mark.parametrize("gate", ["softmax", "context"])
def test_mmoe_is_its_formula(gate: str) -> None:
    torch.manual_seed(0)
    architecture = MMoE(unet, TASKS[:3], gate="context" if gate == "context" else "softmax").eval()
    x = images()
    features = architecture(x)
    weights = {reading.task: reading.values for reading in features.readings}
    assert isinstance(architecture.layer, _Common)
    experts = [run(stages, x) for stages in architecture.layer.before.experts]
    pooled = torch.cat([pyramid[-1].mean((2, 3)) for pyramid in experts], 1)
    for index, task in enumerate(TASKS[:3]):
        layer = architecture.layer.gates[index]
        seen = pooled
        if gate == "context":
            assert isinstance(layer.context, nn.Linear)
            seen = pooled / (1 + torch.exp(-(pooled @ layer.context.weight.T + layer.context.bias)))
        expected = torch.softmax(seen @ layer.linear.weight.T + layer.linear.bias, 1)
        torch.testing.assert_close(weights[task.name], expected)
        for level, stage in enumerate(features.pyramids[task.name]):
            stacked = torch.stack([expert[level] for expert in experts], 1)
            torch.testing.assert_close(stage, torch.einsum("be,bechw->bchw", expected, stacked))


def test_mmoe_gates_start_almost_uniform_and_differ() -> None:
    for gate in ("softmax", "context"):
        torch.manual_seed(0)
        architecture = MMoE(unet, TASKS[:3], gate="context" if gate == "context" else "softmax")
        weights = {reading.task: reading.values for reading in architecture(images(8)).readings}
        assert list(weights) == list(architecture.task_names)
        for weight in weights.values():
            assert weight.shape == (8, 3)
            torch.testing.assert_close(weight.sum(1), torch.ones(8))
            torch.testing.assert_close(weight, torch.full((8, 3), 1 / 3), atol=0.1, rtol=0)
        assert not torch.equal(weights["bbox"], weights["segmentation"])


def test_mmoe_mixing_has_exact_gradients() -> None:
    g = torch.Generator().manual_seed(0)
    shapes = [(2, 2, 3, 3), (2, 3, 1, 2)]
    stages = [torch.randn(s, generator=g, dtype=torch.float64, requires_grad=True) for s in shapes * 3]
    weight = torch.rand(2, 3, generator=g, dtype=torch.float64, requires_grad=True)

    def mixed(weight: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        return mix_levels([flat[i : i + 2] for i in (0, 2, 4)], weight)

    assert torch.autograd.gradcheck(mixed, (weight, *stages))


def test_mmoe_with_one_expert_is_refused() -> None:
    with pytest.raises(MtlbenchError, match="experts must be at least 2, found 1; with one expert use 'hps'"):
        MMoE(unet, TASKS[:2], experts=1)


@every_architecture
def test_cost_is_stated(make: Make) -> None:
    architecture = build(make)
    assert architecture.cost
    assert "\n" not in architecture.cost


def test_the_page_prints_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text(encoding="utf-8")
    code, _, printed = page.partition("```python\n")[2].partition("```\n\n```text\n")
    exec(code, {})
    assert capsys.readouterr().out == printed.partition("```")[0]
