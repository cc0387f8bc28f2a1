"""Layers without weight gradients: the same Gram matrix and update as with them, whatever the layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from mtlbench.contracts import Architecture, Batch, Features, Need, PyramidShape, Task, Vector, Weighting
from mtlbench.gradients import GradientEngine, ghost
from mtlbench.losses import MSE


def always(*_: int) -> bool:
    return True


def never(*_: int) -> bool:
    return False


class Given(Weighting):
    """Fixed weights; keeps the matrix that it was given."""

    needs = Need.GRAM

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.seen: list[Tensor] = []

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        self.seen.append(gram)
        return torch.linspace(-0.5, 2, len(self.active) + 1, dtype=torch.float64)[1:]


class Trunk(Architecture):
    """Any module that gives features for all tasks, or (a tuple of tuples) for each."""

    def __init__(self, net: nn.Module, tasks: Sequence[Task], own: Sequence[str] = ()) -> None:
        super().__init__(lambda task=None: None, tasks)  # type: ignore[arg-type,return-value]
        self.net, self.own = net, own

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        found = self.net(x)
        names = self.task_names if tasks is None else tasks
        penalty = 0.1 * sum(p.square().sum() for p in self.net.parameters())
        if isinstance(found, Tensor):
            return Features(dict.fromkeys(names, (found,)), penalty=penalty)
        pyramids = {n: found[self.task_names.index(n) % len(found)] for n in names}
        return Features(pyramids, penalty=penalty)

    def shape(self, task: str) -> PyramidShape:
        return PyramidShape((1,), (1,))

    def shared_parameters(self) -> list[nn.Parameter]:
        return [p for name, p in self.net.named_parameters() if name not in self.own]


class Head(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0 + number, 0.3], dtype=torch.float64))
        self.number = number

    def forward(self, pyramid: tuple[Tensor, ...], size: Any) -> Tensor:
        out = sum(level.flatten(1) @ self._mix(level) for level in pyramid)
        return torch.tanh(out * self.scale) if isinstance(out, Tensor) else torch.zeros(0)

    def _mix(self, level: Tensor) -> Tensor:
        width = level[0].numel()
        steps = torch.arange(2 * width, dtype=torch.float64).view(width, 2)
        return torch.sin(steps * (self.number + 1.7)) / width**0.5


def compare(
    net: nn.Module,
    x: Tensor,
    count: int = 3,
    own: Sequence[str] = (),
    names: Sequence[str] | None = None,
    per_task: bool = False,
) -> set[str]:
    """Check a step without weight gradients against one with them; return the names that were hidden."""
    net.double()
    tasks = [Task(f"t{i}", Vector(2), MSE(), ()) for i in range(count)]
    architecture = Trunk(net, tasks, own)
    heads = nn.ModuleDict({task.name: Head(i) for i, task in enumerate(tasks)})
    targets = {t.name: torch.cos(torch.arange(2.0 * len(x)).view(-1, 2) + i) for i, t in enumerate(tasks)}
    batch: Any = Batch(x.double(), {n: t.double() for n, t in targets.items()})
    if per_task:
        batch = {n: Batch(x.double().roll(i, -1), batch.targets) for i, n in enumerate(targets)}
    hidden: set[str] = set()
    results = []
    for pays in (never, always):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ghost, "pays", pays)
            patch.setattr("mtlbench.gradients.engine.find", _watched(net, hidden))
            weighting = Given(tasks)
            engine = GradientEngine(architecture, dict(heads.items()), tasks, weighting, per_task=per_task)
            engine.step(batch, names)
        grads = {n: p.grad for n, p in [*net.named_parameters(), *heads.named_parameters()]}
        for p in [*net.parameters(), *heads.parameters()]:
            p.grad = None
        results.append((weighting.seen[0], grads))
    (expected, plain), (found, ghostly) = results
    size = float(expected.diagonal().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * size)
    for name, gradient in plain.items():
        assert (ghostly[name] is None) == (gradient is None), name
        if gradient is not None:
            torch.testing.assert_close(ghostly[name], gradient, rtol=1e-10, atol=1e-12)
            assert ghostly[name].stride() == gradient.stride()  # type: ignore[union-attr]
    return hidden


def _watched(net: nn.Module, hidden: set[str]) -> Callable[..., ghost.Ghosts]:
    def find(roots: Any, trunk: Any, shared: Any, tasks: int) -> ghost.Ghosts:
        ghosts = ghost.find(roots, trunk, shared, tasks)
        plain = {id(p) for p in ghosts.plain}
        hidden.update(n for n, p in net.named_parameters() if p.requires_grad and id(p) not in plain)
        return ghosts

    return find


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    groups=st.integers(1, 3),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    batch=st.integers(1, 4),
    count=st.integers(1, 10),
    bias=st.booleans(),
    last=st.booleans(),
)
def test_convolutions(
    groups: int,
    inputs: int,
    outputs: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    size: tuple[int, int],
    batch: int,
    count: int,
    bias: bool,
    last: bool,
) -> None:
    assume(all(s + 2 * p > d * (k - 1) for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)))
    layer = nn.Conv2d(inputs * groups, outputs * groups, kernel, stride, padding, dilation, groups, bias=bias)
    x = seeded(batch, inputs * groups, *size)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    names = {"0.weight", "0.bias"} if bias else {"0.weight"}
    assert compare(nn.Sequential(layer, nn.Tanh()), x, count) == names


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    batch=st.integers(1, 12),
    count=st.integers(1, 10),
    bias=st.booleans(),
)
def test_linear_layers(sizes: list[int], batch: int, count: int, bias: bool) -> None:
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b, bias=bias), nn.Softplus())]
    net = nn.Sequential(*layers)
    assert compare(net, seeded(batch, sizes[0]), count) == dict(net.named_parameters()).keys()


class Net(nn.Module):
    """Two layers and whatever a test does with them."""

    def __init__(self, use: Callable[[Net, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.extra = nn.Parameter(seeded(4, 4))
        for name, part in parts.items():
            setattr(self, name, part)
        self.use = use

    def forward(self, x: Tensor) -> Any:
        return self.use(self, x)


BOTH = {"one.weight", "one.bias", "two.weight", "two.bias"}
ONE, TWO = {"one.weight", "one.bias"}, {"two.weight", "two.bias"}
ODD = {"one.weight", *TWO}


@pytest.mark.parametrize(
    ("use", "hidden"),
    [
        # read by one layer, or by several passes of layers
        (lambda net, x: net.two(net.one(x).tanh()) + x @ net.extra.sin(), BOTH),
        (lambda net, x: net.two(net.one(net.one(x).tanh()).tanh()) * net.extra.sum(), BOTH),
        (lambda net, x: net.two(x) + functional.linear(x.cos(), net.two.weight), TWO),
        (lambda net, x: net.two(x) + functional.linear(x, net.one.weight, net.two.bias), ODD),
        (lambda net, x: functional.relu(net.two(functional.relu(net.one(x), True)), inplace=True), BOTH),
        (lambda net, x: torch.addmm(net.two.bias, x, net.two.weight.t()) + net.one(x), BOTH),
        # read elsewhere too
        (lambda net, x: net.two(net.one(x)) + net.one.weight.sum(), {*TWO, "one.bias"}),
        (lambda net, x: net.two(net.one(x)) @ net.one.weight, {*TWO, "one.bias"}),
        (lambda net, x: net.two(net.one(x)) @ net.one.weight.t().sin(), {*TWO, "one.bias"}),
        (lambda net, x: net.two(net.one(x) * net.one.bias), {*BOTH} - {"one.bias"}),
        (lambda net, x: net.two(functional.linear(x, net.one.weight * 2, net.one.bias)), TWO),
        (lambda net, x: net.two(functional.linear(x, net.one.weight.t().t(), net.one.bias)), TWO),
        (lambda net, x: net.two(torch.addmm(net.one.bias, x, net.one.weight.t(), alpha=0.5)), TWO),
        (lambda net, x: torch.addmm(net.one.bias, x, net.one.weight.t(), beta=3) + net.two(x), ODD),
        (lambda net, x: net.two(net.one(net.two.weight)), {*ONE, "two.bias"}),
        (lambda net, x: net.two((net.one.weight.t() @ x.t()).t()), TWO),
        (lambda net, x: net.two(x @ net.one.weight), TWO),
        (lambda net, x: ((net.two(x), net.two.weight),), set()),
        (lambda net, x: ((net.two(x), net.two.weight.t()),), {"two.bias"}),
        # tasks that see different things
        (lambda net, x: ((net.one(x),), (net.two(x),), (net.two(net.one(x)),)), BOTH),
        (lambda net, x: ((net.one(x), x), (x.cos(), net.one(x))), ONE),
        # a parameter whose gradient is the cotangent itself
        (lambda net, x: (net.two(x) + net.extra).tanh(), TWO),
        # positions: what becomes of them is autograd's affair
        (lambda net, x: net.two(net.one(x)[:, None].expand(-1, 3, -1).cos()), None),
    ],
)  # fmt: skip
def test_a_weight_that_anything_else_reads_is_left_to_autograd(
    use: Callable[[Net, Tensor], Any], hidden: set[str] | None
) -> None:
    found = compare(Net(use), seeded(4, 4))
    # A bias whose layer keeps its weight gradient is left to autograd as well.
    if hidden is not None:
        kept = {n for n in hidden if not n.endswith("bias") or n.replace("bias", "weight") in hidden}
        assert found == kept


def test_layers_that_torch_wraps_are_left_to_autograd() -> None:
    def use(net: Net, x: Tensor) -> Tensor:
        return net.two(net.one(x).tanh())

    normed = Net(use, one=parametrizations.weight_norm(nn.Linear(4, 4)))
    assert compare(normed, seeded(4, 4)) == TWO
    spectral = Net(use, one=parametrizations.spectral_norm(nn.Linear(4, 4)).eval())
    assert compare(spectral.eval(), seeded(4, 4)) == TWO
    hooked = Net(use)
    hooked.one.weight.register_hook(lambda gradient: gradient * 2)
    assert compare(hooked, seeded(4, 4)) == TWO


def test_hooks_on_tensors_are_obeyed() -> None:
    def use(net: Net, x: Tensor) -> Tensor:
        seen = net.one(x)
        seen.register_hook(lambda gradient: gradient * 3)
        return net.two(seen.tanh())

    assert compare(Net(use), seeded(4, 4)) == BOTH


def test_frozen_parameters_take_no_gradients() -> None:
    net = Net(lambda net, x: net.two(net.one(x).tanh()))
    net.one.weight.requires_grad_(False)
    net.two.bias.requires_grad_(False)
    assert compare(net, seeded(4, 4)) == {"two.weight"}


def test_parameters_that_serve_one_task_keep_their_own_weights() -> None:
    net = Net(lambda net, x: ((net.one(x),), (net.two(net.one(x)),)))
    assert compare(net, seeded(4, 4), own=["two.weight", "two.bias"]) == ONE


def test_tasks_without_labels_are_left_out() -> None:
    net = Net(lambda net, x: ((net.one(x),), (net.two(net.one(x)),)))
    assert compare(net, seeded(4, 4), count=5, names=["t1", "t3"]) == BOTH
    assert compare(net, seeded(4, 4), count=5, names=["t0", "t4"]) == ONE


def test_inputs_of_its_own_for_each_task() -> None:
    net = Net(lambda net, x: net.two(net.one(x).tanh()))
    assert compare(net, seeded(4, 4), per_task=True) == BOTH


def test_other_convolutions_are_left_to_autograd() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Flatten(2), nn.Conv1d(6, 2, 3))
    assert compare(net, seeded(2, 3, 4, 4)) == {"1.weight", "1.bias"}


def test_a_convolution_and_a_transposed_one_share_a_weight() -> None:
    class Tied(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return functional.conv_transpose2d(super().forward(x), self.weight)

    assert compare(Tied(2, 3, 2), seeded(3, 2, 4, 4)) == set()


def test_residual_blocks_with_batch_norm() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.norm, self.short = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = functional.relu(self.norm(self.conv(x)) + self.short(x), inplace=True)
            return functional.relu(self.norm(self.conv(x)), inplace=True)

    assert compare(Block(), seeded(3, 4, 5, 5), 4) == {"conv.weight", "short.weight", "short.bias"}


def test_autocast_is_left_to_autograd() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    with torch.autocast("cpu", torch.bfloat16):
        out = net(seeded(3, 4))
    trunk = list(net.parameters())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ghost, "pays", always)
        assert ghost.find([out], trunk, [True, True], 3).plain == trunk


@pytest.mark.parametrize(
    ("rows", "width", "channels", "tasks", "kernel", "better"),
    [
        (64, 4608, 512, 3, 3, True),  # ResNet-18's last layers, 16 images of 64 x 64
        (64, 4608, 512, 10, 3, True),
        (256, 2304, 256, 3, 3, True),
        (256, 2304, 256, 10, 3, True),
        (1024, 1152, 128, 3, 3, False),
        (1024, 1152, 128, 10, 3, False),
        (65536, 27, 16, 10, 3, False),  # the first convolution of a U-Net
        (256, 128, 128, 8, 1, False),  # a small perceptron
        (64, 4608, 512, 1, 3, False),  # one task: nothing is saved
    ],
)
def test_the_cost_model_agrees_with_what_was_measured(
    rows: int, width: int, channels: int, tasks: int, kernel: int, better: bool
) -> None:
    pixels = rows if kernel > 1 else 0
    assert ghost.pays(rows, width, channels, tasks, 1, pixels, kernel**2) is better


@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 2)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 2)])
def test_products_of_patches_are_sums_of_those_of_pixels(
    stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], kernel: tuple[int, int]
) -> None:
    weight = torch.zeros(2, 3, *kernel)
    use = ghost._Use(0, seeded(3, 3 * 7 * 6).view(3, 3, 7, 6), (stride, padding, dilation, 1))
    rows = use.rows(weight, torch.float64)[0]
    assert len(rows) == use.length(weight)
    found = use._by_pixels(weight, torch.float64).reshape(len(rows), len(rows))
    torch.testing.assert_close(found, rows @ rows.T, rtol=1e-12, atol=1e-12)


def test_samples_that_nearly_cancel_lose_nothing() -> None:
    """Sums in float32 would be off by a hundredth here."""
    inputs = 1 + seeded(16, 64).float() * 1e-2
    deltas = [seeded(16, 64 + i)[:, :64].float() for i in range(2)]
    deltas = [delta - delta.mean(0) for delta in deltas]
    exact = torch.stack([(delta.double().T @ inputs.double()).flatten() for delta in deltas])
    weight = nn.Parameter(torch.zeros(64, 64))
    ghosts = ghost.Ghosts([], [], {weight: [ghost._Use(0, inputs, None)]}, {})
    for delta in deltas:
        ghosts.add([delta])
    torch.testing.assert_close(ghosts.gram(), exact @ exact.T, rtol=1e-9, atol=0)


@pytest.mark.parametrize("mean", [0.0, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("unit", [1.0, 1e20])
def test_products_are_summed_in_float32_only_where_little_cancels(
    mean: float, alike: bool, unit: float
) -> None:
    """The more inputs have in common, the more cancels; cotangents alike in all channels are the worst."""
    inputs = mean + seeded(64, 96).float()
    deltas = [seeded(64, 40 + i)[:, :40].float() for i in range(3)]
    if alike:
        deltas = [delta[:, :1].repeat(1, 40) for delta in deltas]
    deltas = [(delta - delta.mean(0)) * unit for delta in deltas]
    deltas[1] = -0.9 * deltas[0] + 0.1 * deltas[1]
    exact = torch.stack([(delta.double().T @ inputs.double()).flatten() for delta in deltas])
    products = exact @ exact.T
    lengths = products.diagonal()
    own = torch.stack([(d.double().square().sum(1) * inputs.double().square().sum(1)).sum() for d in deltas])
    weight = nn.Parameter(torch.zeros(40, 96))
    ghosts = ghost.Ghosts([], [], {weight: [ghost._Use(0, inputs, None)]}, {})
    for delta in deltas:
        ghosts.add([delta])
    off = ((ghosts.gram() - products).abs() / (lengths[:, None] * lengths).sqrt()).max()
    cancels = bool((own > ghost.CANCELLED * lengths).any())
    assert cancels == (mean > 1)
    assert off < (1e-9 if cancels or unit != 1 else 1e-6)
    if not cancels and unit == 1:
        assert off > 1e-12  # the cheap way was taken
