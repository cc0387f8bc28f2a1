from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mtlbench.errors import Interrupted, MtlbenchError
from mtlbench.training.loop import Outcome, pick_device, train
from mtlbench.training.model import build
from mtlbench.training.optim import learning_rate
from mtlbench.training.report import Silence
from mtlbench.training.seeds import derive, order, stream

CPU = torch.device("cpu")


def outcome(experiment: Any, **more: Any) -> Outcome:
    return train(experiment.run, experiment.dataset, CPU, Silence(), **more)


def facts(found: Outcome) -> dict[str, Any]:
    """Everything of an outcome that is not measured by a clock or a meter."""
    return {k: v for k, v in vars(found).items() if k not in ("seconds", "step_ms", "peak_mb")}


METHODS = [
    {"arch": "mmoe", "weight": "rlw"},
    {"arch": "hps", "weight": "mgda", "grad": "features"},
    {"arch": "stl", "weight": "uw"},
    {"arch": "hps", "weight": "momentum", "optimizer": "sgd", "scheduler": "cosine"},
    {"arch": "mmoe[gate=context]", "weight": "sign-drop", "clip": 1.0, "data": "tiny[missing=0.5]"},
    {"arch": "hps", "weight": "mgda", "data": "tiny[apart=true]", "optimizer": "adamw", "patience": 2},
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m['arch']}+{m['weight']}")
def test_a_run_is_a_function_of_its_config_also_when_interrupted(
    method: dict[str, Any], experiment: Callable[..., Any], tmp_path: Path
) -> None:
    setting = experiment(**method)
    whole = facts(outcome(setting))
    assert whole["status"] == "ok", whole["reason"]
    assert facts(outcome(setting)) == whole
    checkpoint = tmp_path / "c.pt"
    pieces = 0
    for pause in (1, 2, 1, 3, 10**9):  # mid-epoch, at epoch ends, in the first step
        calls = iter(range(10**9))
        try:
            last = outcome(
                setting, checkpoint=checkpoint, resume=True, stopped=lambda c=calls, p=pause: next(c) >= p
            )
            break
        except Interrupted:
            pieces += 1
            torch.rand(7)  # whatever happens between two sessions must not matter
    assert pieces >= 3
    assert facts(last) == whole


def test_resume_reads_no_code_from_a_checkpoint(experiment: Callable[..., Any], tmp_path: Path) -> None:
    checkpoint = tmp_path / "c.pt"
    torch.save({"model": Path("x")}, checkpoint)
    with pytest.raises(MtlbenchError, match="can't be read"):
        outcome(experiment(), checkpoint=checkpoint, resume=True)
    checkpoint.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(MtlbenchError, match="can't be read"):
        outcome(experiment(), checkpoint=checkpoint, resume=True)


def test_every_parameter_of_every_pair_is_trained(experiment: Callable[..., Any], registry: Any) -> None:
    from mtlbench.gradients import GradientEngine

    weightings = [p.name for p in registry.plugins("weightings") if p.name != "explode"]
    pairs = [(a.name, w) for a in registry.plugins("architectures") for w in weightings]
    assert len(pairs) >= 15
    for arch, weight in pairs:
        spec = "fixed[weights=[1,0.5,2]]" if weight == "fixed" else weight
        setting = experiment(arch=arch, weight=spec)
        model, weighting = build(setting.run, setting.dataset)
        engine = GradientEngine(
            model.architecture, dict(model.heads.items()), setting.dataset.tasks, weighting
        )
        engine.step(setting.dataset.split("train").fetch(torch.arange(8)).to(CPU))
        for part in (model, weighting):
            for name, parameter in part.named_parameters():
                assert parameter.grad is not None, f"{arch}+{weight}: {name} has no gradient"
                assert parameter.grad.abs().sum() > 0, f"{arch}+{weight}: the gradient of {name} is zero"


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


def test_a_loss_that_is_not_finite_ends_the_run(experiment: Callable[..., Any]) -> None:
    found = outcome(experiment(weight="explode", optimizer="sgd"))
    assert found.status == "diverged"
    assert found.reason is not None
    assert "not finite in epoch 1, step 2" in found.reason
    assert found.test == {}


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
