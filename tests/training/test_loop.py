from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import CPU, facts, layout, outcome, outcome_in_pieces
from torch import nn

from mtlbench.errors import Interrupted, MtlbenchError
from mtlbench.gradients import GradientEngine
from mtlbench.registry import Registry
from mtlbench.testing.parts import inner_weightings
from mtlbench.training.loop import pick_device
from mtlbench.training.model import build, build_engine
from mtlbench.training.optim import build_optimizer, learning_rate
from mtlbench.training.seeds import derive, order, stream
from mtlbench_zoo.architectures.ltb import LTB

METHODS = [
    {"arch": "mmoe", "weight": "rlw"},
    {"arch": "hps", "weight": "mgda", "grad": "features"},
    {"arch": "stl", "weight": "uw"},
    {"arch": "hps", "weight": "momentum", "optimizer": "sgd", "scheduler": "cosine"},
    {"arch": "mmoe[gate=context]", "weight": "sign-drop", "clip": 1.0, "data": "tiny[missing=0.5]"},
    {"arch": "hps", "weight": "mgda", "data": "tiny[apart=true]", "optimizer": "adamw", "patience": 2},
    {"arch": "ltb", "weight": "ew", "encoder": "conv[width=4]"},
    {"arch": "dselect-k[experts=3]", "weight": "mgda", "encoder": "conv[width=4]"},
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m['arch']}+{m['weight']}")
def test_a_run_is_a_function_of_its_config_also_when_interrupted(
    method: dict[str, Any], experiment: Callable[..., Any], tmp_path: Path
) -> None:
    setting = experiment(**method)
    whole = facts(outcome(setting))
    assert whole["status"] == "ok", whole["reason"]
    assert facts(outcome(setting)) == whole
    assert facts(outcome_in_pieces(setting, tmp_path / "c.pt")) == whole


def test_resume_reads_no_code_from_a_checkpoint(experiment: Callable[..., Any], tmp_path: Path) -> None:
    checkpoint = tmp_path / "c.pt"
    torch.save({"model": Path("x")}, checkpoint)
    with pytest.raises(MtlbenchError, match="can't be read"):
        outcome(experiment(), checkpoint=checkpoint, resume=True)
    checkpoint.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(MtlbenchError, match="can't be read"):
        outcome(experiment(), checkpoint=checkpoint, resume=True)


SETTINGS = [
    {"encoder": "conv"},
    {"encoder": "conv", "grad": "features"},
    {"encoder": "unet[depth=3,width=4]"},
    {"encoder": "conv", "tasks": ("mask", "box")},
    {"encoder": "conv", "data": "tiny[apart=true]"},
]
REPRESENTATIVES = ("ew", "mgda", "momentum", "sign-drop")
ARCHITECTURES = [plugin.name for plugin in Registry().plugins("architectures")]


def weightings(registry: Any, tasks: int) -> list[str]:
    names = [p.name for p in registry.plugins("weightings") if not p.name.startswith("explode")]
    return [f"fixed[weights={[1, 0.5, 2][:tasks]}]" if name == "fixed" else name for name in names]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_every_parameter_is_trained_in_every_setting(
    setting: dict[str, Any], experiment: Callable[..., Any], registry: Any
) -> None:
    """Here hps stands for all architectures, and one weighting of each need for all weightings."""
    tried = 0
    for arch in ARCHITECTURES:
        for weight in weightings(registry, len(setting.get("tasks", (1, 2, 3)))):
            if arch != "hps" and weight not in REPRESENTATIVES:
                continue
            try:
                made = experiment(arch=arch, weight=weight, **setting)
            except MtlbenchError as refusal:
                if "--grad features" not in str(refusal):
                    raise
                continue
            tried += 1
            model, weighting = build(made.run, made.dataset)
            engine = build_engine(made.run, made.dataset, model, weighting)
            untrained = step_until_trained(engine, model, weighting, first_batch(made.dataset))
            assert not untrained, f"{arch}+{weight}: no gradient, or zero, in {', '.join(untrained)}"
    assert tried >= 2


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_weighting_trains_every_parameter(
    arch: str, experiment: Callable[..., Any], registry: Any
) -> None:
    """Attention modules and gates too, which a trainer easily forgets when it combines gradients."""
    made = experiment(arch=arch, encoder="conv[width=4]")
    tasks = made.dataset.tasks
    model, _ = build(made.run, made.dataset)
    heads, batch = dict(model.heads.items()), first_batch(made.dataset)
    for spec in weightings(registry, len(tasks)):
        weighting = registry.choose("weightings", spec).build(tasks=tasks, weightings=inner_weightings(tasks))
        engine = GradientEngine(model.architecture, heads, tasks, weighting)
        untrained = step_until_trained(engine, model, weighting, batch)
        assert not untrained, f"{spec}: no gradient, or zero, in {', '.join(untrained)}"


def step_until_trained(
    engine: GradientEngine, model: nn.Module, weighting: nn.Module, batch: Any
) -> set[str]:
    """Return the parameters that get no gradient in one step (ltb, which samples its branches: in several).

    Gradients must have the memory layout that fused optimisers count on.
    """
    named = dict([*model.named_parameters(), *weighting.named_parameters()])
    untrained = set(named)
    for _ in range(40 if isinstance(engine.architecture, LTB) else 1):
        model.zero_grad()
        engine.step(batch, others=[batch] * (engine.weighting.needs.batches - 1))
        for name, parameter in named.items():
            if parameter.grad is not None and parameter.grad.any():
                assert layout(parameter.grad) == layout(parameter), name
                untrained.discard(name)
        if not untrained:
            break
    return untrained


def first_batch(dataset: Any) -> Any:
    split = dataset.split("train")
    if dataset.per_task:
        return {name: part.fetch(torch.arange(8)).to(CPU) for name, part in split.items()}
    return split.fetch(torch.arange(8)).to(CPU)


@pytest.mark.parametrize("weight", ["ew", "mgda", "sign-drop", "momentum"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_fused_step_is_the_step(weight: str, optimizer: str, experiment: Callable[..., Any]) -> None:
    """A fused kernel walks raw memory: a gradient in another layout would go to other weights."""
    setting = experiment(encoder="unet[depth=3,width=4]", weight=weight, optimizer=optimizer)
    results = []
    for fused in (True, False):
        model, weighting = build(setting.run, setting.dataset)
        engine = GradientEngine(
            model.architecture, dict(model.heads.items()), setting.dataset.tasks, weighting
        )
        made = build_optimizer(setting.run.protocol, model, weighting)
        for group in made.param_groups:
            group["fused"] = fused
        engine.step(first_batch(setting.dataset))
        made.step()
        results.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)


def test_an_early_stop_keeps_the_best_epoch(experiment: Callable[..., Any]) -> None:
    found = outcome(experiment(epochs=40, patience=2, lr=0.05))
    epoch, score = found.selected or (0, 0.0)
    scores = [row["score"] for row in found.history]
    assert len(scores) < 40
    assert epoch == scores.index(min(scores)) + 1
    assert score == min(scores)
    assert len(scores) == epoch + 2


def test_the_score_is_the_geometric_mean_of_validation_losses(experiment: Callable[..., Any]) -> None:
    row = outcome(experiment(epochs=1)).history[0]
    losses = [task["loss"] for task in row["val"].values()]
    assert math.exp(row["score"]) == pytest.approx(math.prod(losses) ** (1 / len(losses)))


def test_the_test_split_is_scored_with_the_selected_weights(experiment: Callable[..., Any]) -> None:
    """A run of as many epochs as were selected ends in the same test scores."""
    setting = experiment(epochs=8, lr=0.05)
    found = outcome(setting)
    assert found.selected is not None
    best = found.selected[0]
    assert best < 8, "choose other settings: this test needs an overfitted end"
    short = experiment(epochs=best, lr=0.05)
    assert outcome(short).test == found.test


@pytest.mark.parametrize("weight", ["explode", "explode-gram", "explode-jacobian"])
def test_a_loss_that_is_not_finite_ends_the_run(weight: str, experiment: Callable[..., Any]) -> None:
    found = outcome(experiment(weight=weight, optimizer="sgd"))
    assert found.status == "diverged"
    assert found.reason is not None
    assert "not finite in epoch 1, step 2" in found.reason
    assert found.test == {}


@pytest.mark.parametrize(("weight", "fault"), [(1e30, "too large"), (1e-30, "too small")])
def test_a_run_that_changes_nothing_has_failed(
    weight: float, fault: str, experiment: Callable[..., Any], tmp_path: Path
) -> None:
    """Adam divides by a gradient's infinite square, or by an epsilon above it; all losses stay finite."""
    setting = experiment(weight=f"fixed[weights=[{weight},{weight},{weight}]]", epochs=2)
    found = outcome(setting)
    assert (found.status, len(found.history), found.test, found.model) == ("failed", 0, {}, {})
    assert found.reason is not None
    assert found.reason.startswith("after epoch 1 the gradients were ")
    assert fault in found.reason
    calls = iter([False, False, True])  # stopped within the epoch, and gone on
    with pytest.raises(Interrupted):
        outcome(setting, checkpoint=tmp_path / "c.pt", stopped=lambda: next(calls))
    assert facts(outcome(setting, checkpoint=tmp_path / "c.pt", resume=True)) == facts(found)


def test_the_run_id_knows_all_code_that_decides_a_result() -> None:
    """All of the core but what shows, tells or checks results is in the digest of the loop or of a plugin."""
    from mtlbench import source
    from mtlbench.experiment import CORE

    plugins = ["datasets.pets", "weightings.mgda", "encoders.unet", "architectures.mmoe"]
    covered = set().union(*(source._closure(name) for name in CORE + [f"mtlbench_zoo.{p}" for p in plugins]))
    modules = (
        "contracts.task data.hdf5 gradients.engine gradients.gram heads.unet losses.l1 metrics.boxes"
        " solvers.min_norm training.evaluate training.seeds"
    )
    for module in modules.split():
        assert f"mtlbench.{module}" in covered


def test_pairs_share_data_order_and_initial_encoder(experiment: Callable[..., Any]) -> None:
    def encoder(setting: Any) -> dict[str, torch.Tensor]:
        state = build(setting.run, setting.dataset)[0].architecture.state_dict()
        return {
            n.partition("stages")[2]: v for n, v in state.items() if n.startswith(("encoder.", "encoders."))
        }

    together = encoder(experiment(arch="hps"))
    single = experiment(arch="stl", tasks=("side",))
    alone = encoder(replace_run(single, tasks=("side",)))
    assert together.keys() == alone.keys()
    assert len(together) > 4
    assert all(together[name].equal(alone[name]) for name in together)
    assert order(0, 3, 100).equal(order(0, 3, 100))
    assert not order(0, 3, 100).equal(order(0, 4, 100))


def replace_run(setting: Any, **changes: Any) -> Any:
    setting.run = replace(setting.run, **changes)
    return setting


def test_streams_are_independent_and_leave_no_trace() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with stream(0, "encoder", 0):
        one = torch.rand(3)
    with stream(0, "encoder", 1):
        two = torch.rand(3)
    assert torch.rand(3).equal(expected)
    assert not one.equal(two)
    assert derive(0, "a") != derive(1, "a")
    assert 0 <= derive(5, "x") < 2**63


def test_schedules() -> None:
    base = {"lr": 1.0, "gamma": 0.5, "step_size": 2, "epochs": 4}
    assert [learning_rate(base | {"scheduler": "none"}, e) for e in range(3)] == [1, 1, 1]
    assert [learning_rate(base | {"scheduler": "step"}, e) for e in range(5)] == [1, 1, 0.5, 0.5, 0.25]
    cosine = [learning_rate(base | {"scheduler": "cosine"}, e) for e in range(4)]
    assert cosine == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])


def test_after_epoch_is_called_with_every_epoch(experiment: Callable[..., Any], tmp_path: Path) -> None:
    setting = experiment(weight="momentum", epochs=2)
    path = tmp_path / "c.pt"
    outcome(setting, checkpoint=path)
    assert torch.load(path, weights_only=True)["weighting"]["epochs"] == 2


@pytest.mark.parametrize("name", ["nowhere", "cuda:99"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(MtlbenchError, match=name):
        pick_device(name)
