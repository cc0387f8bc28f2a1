"""The engine against plain autograd: what ends up in ``.grad`` is what the formulas say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from mtlbench.contracts import (
    Architecture,
    Batch,
    Encoder,
    Features,
    Need,
    PyramidShape,
    Task,
    Vector,
    Weighting,
)
from mtlbench.errors import MtlbenchError
from mtlbench.gradients import GradientEngine
from mtlbench.losses import MSE
from mtlbench.training.model import build, build_engine

TASKS = tuple(Task(name, Vector(2), MSE(), ()) for name in "abc")


class TwoStage(Encoder):
    def __init__(self, in_channels: int = 5) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [nn.Sequential(nn.Linear(in_channels, 6), nn.Tanh()), nn.Sequential(nn.Linear(6, 4), nn.Tanh())]
        )
        self.shape = PyramidShape((6, 4), (1, 1))


class Shared(Architecture):
    """One encoder, a scale that only task b passes (a gate, in small), and an optional penalty."""

    shares_features: ClassVar[bool] = False

    def __init__(self, penalty: bool = False) -> None:
        super().__init__(TwoStage, TASKS)
        self.encoder = TwoStage()
        self.gate = nn.Parameter(torch.full((4,), 1.5))
        self.penalty = penalty

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        first, last = self.encoder(x)
        names = self.task_names if tasks is None else tasks
        pyramids = {n: (first, last * self.gate if n == "b" else last) for n in names}
        penalty = None
        if self.penalty:
            penalty = 0.1 * self.encoder.stages[0][0].weight.square().sum() + 0.2 * self.gate.square().sum()
        return Features(pyramids, None, penalty)

    def shape(self, task: str) -> PyramidShape:
        return self.encoder.shape

    def shared_parameters(self) -> list[nn.Parameter]:
        return list(self.encoder.parameters())


class Hard(Shared):
    shares_features = True

    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
        pyramid = self.encoder(x)
        names = self.task_names if tasks is None else tasks
        penalty = 0.1 * self.encoder.stages[0][0].weight.square().sum() if self.penalty else None
        return Features(dict.fromkeys(names, pyramid), pyramid, penalty)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 2)

    def forward(self, pyramid: tuple[Tensor, ...], size: tuple[int, ...]) -> Tensor:
        out: Tensor = self.linear(torch.cat(pyramid, 1))
        return out


OWN = torch.tensor([0.5, 3.0, 1.0], dtype=torch.float64)


class Given(Weighting):
    """Weights that the test chooses."""

    def __init__(
        self, need: Need, weights: list[float], heads: Literal["weighted", "unweighted", "own"]
    ) -> None:
        super().__init__(TASKS)
        self.needs, self.weights, self.heads = need, torch.tensor(weights, dtype=torch.float64), heads  # type: ignore[misc]
        self.seen: list[Tensor] = []

    def forward(self, statistic: Tensor, losses: Tensor | None = None) -> Tensor:
        self.seen.append(statistic.detach().clone())
        weights = self.weights[self.active]
        if self.heads == "own":
            self.head_weights = OWN[self.active]
        return weights.to(statistic) @ statistic if self.needs is Need.JACOBIAN else weights


class Learned(Weighting):
    needs = Need.LOSSES

    def __init__(self) -> None:
        super().__init__(TASKS)
        self.s = nn.Parameter(torch.tensor([0.1, -0.2, 0.3]))

    def forward(self, losses: Tensor) -> Tensor:
        return (losses * torch.exp(-self.s) + self.s).sum()


def _parts(kind: type[Shared], penalty: bool = False) -> tuple[Shared, nn.ModuleDict, Batch]:
    torch.manual_seed(3)
    architecture = kind(penalty)
    heads = nn.ModuleDict({task.name: Head() for task in TASKS})
    batch = Batch(torch.randn(8, 5), {task.name: torch.randn(8, 2) for task in TASKS})
    return architecture, heads, batch


def _engine(
    architecture: Shared, heads: nn.ModuleDict, weighting: Weighting, space: Literal["parameters", "features"]
) -> GradientEngine:
    return GradientEngine(architecture, {n: heads[n] for n in "abc"}, TASKS, weighting, space)


def _plain(architecture: Shared, heads: nn.ModuleDict, batch: Batch, task: str) -> dict[str, Tensor]:
    """The gradient of one task's loss (or of the penalty), by autograd alone."""
    model = nn.ModuleDict({"architecture": architecture, "heads": heads})
    model.zero_grad(set_to_none=True)
    features = architecture(batch.inputs)
    if task == "penalty":
        assert features.penalty is not None
        features.penalty.backward()
    else:
        MSE()(heads[task](features.pyramids[task], ()), batch.targets[task]).backward()
    found = {
        n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()
    }
    model.zero_grad(set_to_none=True)
    return found


def _expected(
    architecture: Shared, heads: nn.ModuleDict, batch: Batch, weights: dict[str, float], own: dict[str, float]
) -> dict[str, Tensor]:
    shared = {id(p) for p in architecture.shared_parameters()}
    names = dict(nn.ModuleDict({"architecture": architecture, "heads": heads}).named_parameters())
    total = {n: torch.zeros_like(p) for n, p in names.items()}
    for task in [*weights, *(["penalty"] if architecture.penalty else [])]:
        for name, gradient in _plain(architecture, heads, batch, task).items():
            factor = (weights if id(names[name]) in shared else own).get(task, 1.0)
            total[name] += factor * gradient
    return total


def _check(architecture: Shared, heads: nn.ModuleDict, expected: dict[str, Tensor]) -> None:
    model = nn.ModuleDict({"architecture": architecture, "heads": heads})
    for name, parameter in model.named_parameters():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(
            found, expected[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


WEIGHTS = [0.2, 1.7, 0.6]
NAMED = dict(zip("abc", WEIGHTS, strict=True))


RULES: dict[Literal["weighted", "unweighted", "own"], dict[str, float]] = {
    "weighted": NAMED,
    "unweighted": dict.fromkeys("abc", 1.0),
    "own": dict(zip("abc", OWN.tolist(), strict=True)),
}


@pytest.mark.parametrize("penalty", [False, True])
@pytest.mark.parametrize("heads_rule", list(RULES))
@pytest.mark.parametrize(
    ("kind", "space"), [(Shared, "parameters"), (Hard, "parameters"), (Hard, "features")]
)
def test_gram_weights_reach_the_trunk_and_heads_keep_their_convention(
    kind: type[Shared],
    space: Literal["parameters", "features"],
    heads_rule: Literal["weighted", "unweighted", "own"],
    penalty: bool,
) -> None:
    architecture, heads, batch = _parts(kind, penalty)
    expected = _expected(architecture, heads, batch, NAMED, RULES[heads_rule])
    step = _engine(architecture, heads, Given(Need.GRAM, WEIGHTS, heads_rule), space).step(batch)
    _check(architecture, heads, expected)
    assert step.weights is not None
    assert step.weights.tolist() == pytest.approx(WEIGHTS)


@pytest.mark.parametrize("need", [Need.LOSSES, Need.JACOBIAN])
def test_only_gram_weights_are_reused(need: Need) -> None:
    architecture, heads, _ = _parts(Shared)
    weighting = Given(need, WEIGHTS, "weighted")
    weighting.every = 2
    with pytest.raises(MtlbenchError, match="reused"):
        _engine(architecture, heads, weighting, "parameters")


@pytest.mark.parametrize("heads_rule", list(RULES))
def test_reused_weights_give_the_same_update(heads_rule: Literal["weighted", "unweighted", "own"]) -> None:
    architecture, heads, batch = _parts(Shared, penalty=True)
    own = RULES[heads_rule]
    expected = _expected(architecture, heads, batch, NAMED, own)
    weighting = Given(Need.GRAM, WEIGHTS, heads_rule)
    weighting.every = 2
    engine = _engine(architecture, heads, weighting, "parameters")
    for calls in (1, 1, 2):
        architecture.zero_grad(set_to_none=True)
        heads.zero_grad(set_to_none=True)
        engine.step(batch)
        _check(architecture, heads, expected)
        assert len(weighting.seen) == calls


def test_gram_is_the_product_of_the_task_gradients() -> None:
    architecture, heads, batch = _parts(Shared)
    names = [n for n, p in architecture.named_parameters() if n != "gate"]
    rows = []
    for task in "abc":
        gradient = _plain(architecture, heads, batch, task)
        rows.append(torch.cat([gradient[f"architecture.{n}"].flatten() for n in names]).double())
    jacobian = torch.stack(rows)
    weighting = Given(Need.GRAM, WEIGHTS, "weighted")
    _engine(architecture, heads, weighting, "parameters").step(batch)
    torch.testing.assert_close(weighting.seen[0], jacobian @ jacobian.T, rtol=1e-5, atol=1e-8)


def test_feature_gram_is_the_product_of_the_cotangents() -> None:
    architecture, heads, batch = _parts(Hard)
    rows = []
    for task in "abc":
        leaves = [level.detach().requires_grad_() for level in architecture.encoder(batch.inputs)]
        MSE()(heads[task](tuple(leaves), ()), batch.targets[task]).backward()
        rows.append(torch.cat([leaf.grad.flatten() for leaf in leaves if leaf.grad is not None]).double())
    heads.zero_grad(set_to_none=True)
    cotangents = torch.stack(rows)
    weighting = Given(Need.GRAM, WEIGHTS, "weighted")
    _engine(architecture, heads, weighting, "features").step(batch)
    torch.testing.assert_close(weighting.seen[0], cotangents @ cotangents.T, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("heads_rule", ["unweighted", "own"])
@pytest.mark.parametrize(("kind", "space"), [(Shared, "parameters"), (Hard, "features")])
def test_jacobian_update_is_placed_where_it_belongs(
    kind: type[Shared],
    space: Literal["parameters", "features"],
    heads_rule: Literal["weighted", "unweighted", "own"],
) -> None:
    architecture, heads, batch = _parts(kind, penalty=True)
    expected = _expected(architecture, heads, batch, NAMED, RULES[heads_rule])
    step = _engine(architecture, heads, Given(Need.JACOBIAN, WEIGHTS, heads_rule), space).step(batch)
    _check(architecture, heads, expected)
    assert step.weights is None


def test_a_scalar_objective_trains_its_own_parameters_too() -> None:
    architecture, heads, batch = _parts(Shared, penalty=True)
    weighting = Learned()
    weights = dict(zip("abc", torch.exp(-weighting.s).tolist(), strict=True))
    expected = _expected(architecture, heads, batch, weights, weights)
    step = _engine(architecture, heads, weighting, "parameters").step(batch)
    _check(architecture, heads, expected)
    assert step.weights is not None
    assert step.weights.tolist() == pytest.approx(list(weights.values()), rel=1e-6)
    assert weighting.s.grad is not None
    slope = 1 - step.losses * torch.exp(-weighting.s.detach().double())
    torch.testing.assert_close(weighting.s.grad.double(), slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scale", "total"), [("published", 2.5), ("sum", 3.0), ("mean", 1.0)])
@pytest.mark.parametrize("need", [Need.LOSSES, Need.GRAM])
def test_scale_brings_weights_to_one_footing(need: Need, scale: Any, total: float) -> None:
    architecture, heads, batch = _parts(Hard)
    weights = {n: w * total / 2.5 for n, w in NAMED.items()}
    expected = _expected(architecture, heads, batch, weights, weights)
    weighting = Given(need, WEIGHTS, "weighted")
    parts = {n: heads[n] for n in "abc"}
    step = GradientEngine(architecture, parts, TASKS, weighting, scale=scale).step(batch)
    _check(architecture, heads, expected)
    assert step.weights is not None
    assert step.weights.sum().item() == pytest.approx(total)


def test_scale_is_refused_where_there_are_no_weights() -> None:
    architecture, heads, _ = _parts(Hard)
    parts = {n: heads[n] for n in "abc"}
    with pytest.raises(MtlbenchError, match="no weights"):
        GradientEngine(architecture, parts, TASKS, Given(Need.JACOBIAN, WEIGHTS, "weighted"), scale="sum")


def _jacobian(architecture: Shared, heads: nn.ModuleDict, batch: Batch) -> Tensor:
    """The gradients of the three tasks by the shared parameters, float64 [3, P]."""
    shared = {id(p) for p in architecture.shared_parameters()}
    names = [f"architecture.{n}" for n, p in architecture.named_parameters() if id(p) in shared]
    rows = [_plain(architecture, heads, batch, task) for task in "abc"]
    return torch.stack([torch.cat([row[n].flatten() for n in names]).double() for row in rows])


@pytest.mark.parametrize("penalty", [False, True])
@pytest.mark.parametrize("heads_rule", list(RULES))
def test_cross_weights_compare_two_batches_and_weigh_a_third(
    heads_rule: Literal["weighted", "unweighted", "own"], penalty: bool
) -> None:
    architecture, heads, batch = _parts(Shared, penalty)
    first, second = (
        Batch(torch.randn(8, 5), {task.name: torch.randn(8, 2) for task in TASKS}) for _ in range(2)
    )
    expected = _expected(architecture, heads, batch, NAMED, RULES[heads_rule])
    cross = _jacobian(architecture, heads, first) @ _jacobian(architecture, heads, second).T
    weighting = Given(Need.CROSS, WEIGHTS, heads_rule)
    step = _engine(architecture, heads, weighting, "parameters").step(batch, others=[first, second])
    _check(architecture, heads, expected)
    torch.testing.assert_close(weighting.seen[0], cross, rtol=1e-5, atol=1e-8)
    assert not torch.allclose(cross, cross.T)
    assert step.weights is not None
    assert step.weights.tolist() == pytest.approx(WEIGHTS)


@pytest.mark.parametrize(("need", "batches"), [(Need.CROSS, 1), (Need.CROSS, 2), (Need.GRAM, 2)])
def test_a_wrong_number_of_batches_is_refused(need: Need, batches: int) -> None:
    architecture, heads, batch = _parts(Shared)
    engine = _engine(architecture, heads, Given(need, WEIGHTS, "weighted"), "parameters")
    with pytest.raises(MtlbenchError, match=f"takes {need.batches} independent batches, found {batches}"):
        engine.step(batch, others=[batch] * (batches - 1))


def test_a_loss_of_a_further_batch_that_is_not_finite_is_told() -> None:
    architecture, heads, batch = _parts(Shared)
    bad = Batch(batch.inputs, dict(batch.targets) | {"b": torch.full((8, 2), torch.inf)})
    engine = _engine(architecture, heads, Given(Need.CROSS, WEIGHTS, "weighted"), "parameters")
    step = engine.step(batch, others=[batch, bad])
    assert step.losses.isfinite().tolist() == [True, False, True]


class ByBlock(Weighting):
    """Weights that differ from block to block."""

    needs = Need.GRAM
    heads = "unweighted"

    def __init__(self, blocks: Literal["layer", "matrix"]) -> None:
        super().__init__(TASKS)
        self.blocks = blocks

    def forward(self, gram: Tensor, losses: Tensor) -> Tensor:
        self.seen = gram
        return torch.arange(1.0, 1 + gram.shape[0] * 3, dtype=torch.float64).view(-1, 3) / 4


@pytest.mark.parametrize(("blocks", "sizes"), [("layer", [2, 2]), ("matrix", [1, 1, 1, 1])])
def test_blocks_have_gram_matrices_and_weights_of_their_own(
    blocks: Literal["layer", "matrix"], sizes: list[int]
) -> None:
    architecture, heads, batch = _parts(Shared, penalty=True)
    names = [n for n, _ in architecture.named_parameters() if n != "gate"]
    groups = [names[sum(sizes[:k]) : sum(sizes[: k + 1])] for k in range(len(sizes))]
    plain = {task: _plain(architecture, heads, batch, task) for task in ("a", "b", "c", "penalty")}
    ones = dict.fromkeys("abc", 1.0)
    expected = _expected(architecture, heads, batch, ones, ones)
    weighting = ByBlock(blocks)
    step = _engine(architecture, heads, weighting, "parameters").step(batch)
    for k, group in enumerate(groups):
        flat = [torch.cat([plain[t][f"architecture.{n}"].flatten() for n in group]).double() for t in "abc"]
        rows = torch.stack(flat)
        torch.testing.assert_close(weighting.seen[k], rows @ rows.T, rtol=1e-5, atol=1e-8)
        for name in (f"architecture.{n}" for n in group):
            parts = zip("abc", range(3), strict=True)
            expected[name] = plain["penalty"][name] + sum(
                plain[task][name] * (1 + 3 * k + i) / 4 for task, i in parts
            )
    _check(architecture, heads, expected)
    assert len(weighting.seen) == len(sizes)
    assert step.weights is not None
    middle = (len(sizes) - 1) / 2
    assert step.weights.tolist() == pytest.approx([(1 + 3 * middle + i) / 4 for i in range(3)])


def test_blocks_cannot_be_reused_nor_taken_from_features() -> None:
    architecture, heads, _ = _parts(Hard)
    with pytest.raises(MtlbenchError, match="weights by layer"):
        _engine(architecture, heads, ByBlock("layer"), "features")
    weighting = ByBlock("layer")
    weighting.every = 2
    with pytest.raises(MtlbenchError, match="of every step"):
        _engine(architecture, heads, weighting, "parameters")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_method_knows_the_precision_of_the_gradients(dtype: torch.dtype) -> None:
    architecture, heads, _ = _parts(Hard)
    weighting = Given(Need.GRAM, WEIGHTS, "weighted")
    _engine(architecture.to(dtype), heads, weighting, "parameters")
    assert weighting.eps == torch.finfo(dtype).eps


@pytest.mark.parametrize("need", [Need.LOSSES, Need.GRAM, Need.CROSS, Need.JACOBIAN])
def test_a_task_without_labels_is_left_out(need: Need) -> None:
    architecture, heads, batch = _parts(Hard)
    weighting = Given(need, WEIGHTS, "weighted")
    others = [batch] * (need.batches - 1)
    step = _engine(architecture, heads, weighting, "parameters").step(batch, ["a", "c"], others=others)
    assert step.losses.isnan().tolist() == [False, True, False]
    assert weighting.active.tolist() == [0, 2]
    assert len(weighting.seen[0]) == 2
    assert all(p.grad is None for p in heads["b"].parameters())
    assert all(p.grad is not None for p in architecture.encoder.parameters())


def test_gradients_that_autograd_hands_out_twice_are_combined_once() -> None:
    class Added(Hard):
        """Two parameters that are simply added share one gradient tensor."""

        def __init__(self, penalty: bool = False) -> None:
            super().__init__(penalty)
            self.encoder.one = nn.Parameter(torch.zeros(8, 4))
            self.encoder.two = nn.Parameter(torch.zeros(8, 4))

        def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
            first, last = self.encoder(x)
            pyramid = (first, last + self.encoder.one + self.encoder.two)
            return Features(dict.fromkeys(tasks or self.task_names, pyramid), pyramid)

    architecture, heads, batch = _parts(Added)
    expected = _expected(architecture, heads, batch, NAMED, NAMED)
    _engine(architecture, heads, Given(Need.GRAM, WEIGHTS, "weighted"), "parameters").step(batch)
    _check(architecture, heads, expected)


def test_per_task_inputs_give_per_task_gradients() -> None:
    architecture, heads, _ = _parts(Shared)
    batches = {n: Batch(torch.randn(4 + i, 5), {n: torch.randn(4 + i, 2)}) for i, n in enumerate("abc")}
    total: dict[str, Tensor] = {}
    for name, part in batches.items():
        for key, gradient in _plain(architecture, heads, part, name).items():
            total[key] = total.get(key, torch.zeros_like(gradient)) + NAMED[name] * gradient
    weighting = Given(Need.GRAM, WEIGHTS, "weighted")
    GradientEngine(architecture, {n: heads[n] for n in "abc"}, TASKS, weighting, per_task=True).step(batches)
    _check(architecture, heads, total)


@pytest.mark.parametrize(
    ("kind", "need", "per_task", "word"),
    [
        (Hard, Need.LOSSES, False, "weights losses"),
        (Shared, Need.GRAM, False, "no feature tensor"),
        (Hard, Need.GRAM, True, "own inputs"),
    ],
)
def test_features_are_refused_where_they_make_no_sense(
    kind: type[Shared], need: Need, per_task: bool, word: str
) -> None:
    architecture, heads, _ = _parts(kind)
    with pytest.raises(MtlbenchError, match=word):
        GradientEngine(
            architecture,
            {n: heads[n] for n in "abc"},
            TASKS,
            Given(need, WEIGHTS, "weighted"),
            "features",
            per_task,
        )


def test_a_step_without_some_labels_leaves_the_weights_that_others_reuse(
    experiment: Callable[..., Any],
) -> None:
    setting = experiment(weight="every[of=mgda,k=3]")
    model, weighting = build(setting.run, setting.dataset)
    engine = build_engine(setting.run, setting.dataset, model, weighting)
    batch = setting.dataset.split("train").fetch(torch.arange(8)).to(torch.device("cpu"))
    first, second, third = (engine.step(batch, names) for names in (None, setting.run.tasks[:1], None))
    assert (first.gram is not None, second.gram, third.gram) == (True, None, None)
    assert torch.equal(first.weights, third.weights)


def test_a_head_that_gives_two_levels_one_gradient_is_right_in_parts() -> None:
    class Sum(Head):
        def forward(self, pyramid: tuple[Tensor, ...], size: tuple[int, ...]) -> Tensor:
            out: Tensor = (pyramid[0] + pyramid[1])[:, :2]
            return out

    class Even(Hard):
        def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> Features:
            first, last = self.encoder(x)
            pyramid = (first[:, :4], last)
            return Features(dict.fromkeys(self.task_names if tasks is None else tasks, pyramid), pyramid)

    found = []
    for cuts in (1, 2):
        architecture, _, batch = _parts(Even)
        heads = nn.ModuleDict({task.name: Sum() for task in TASKS})
        pieces = [slice(at, at + 8 // cuts) for at in range(0, 8, 8 // cuts)]
        parts = [Batch(batch.inputs[p], {n: t[p] for n, t in batch.targets.items()}) for p in pieces]
        weighting = Given(Need.GRAM, [0.2, 1.4, 3.0], "unweighted")
        _engine(architecture, heads, weighting, "features").step(parts)
        found.append([p.grad for p in architecture.encoder.parameters()])
    torch.testing.assert_close(found[0], found[1])
