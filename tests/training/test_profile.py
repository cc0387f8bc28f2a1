"""Where the time goes: every second is charged to what takes it, and a profile changes no result."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from runs import facts, outcome

from mtlbench.cli import cli
from mtlbench.contracts import Loss, Split
from mtlbench.training import profile
from mtlbench.training.profile import BESIDE, STEP

COSTS = {"fetch": 1.0, "forward": 10.0, "loss": 100.0, "backward": 1e3, "weighting": 1e4, "optimiser": 1e5}


@pytest.mark.parametrize("method", ["ew", "mgda", "mgda, features", "sign-drop", "moml"])
def test_every_second_is_charged_to_what_takes_it(
    experiment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    weight, _, space = method.partition(", ")
    made = experiment(weight=weight, grad=space or "parameters", epochs=2, workers=0)
    expected = facts(outcome(made))
    now, calls = [0.0], dict.fromkeys(COSTS, 0)
    monkeypatch.setattr(profile, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slow(owner: Any, name: str, cost: str, only: Callable[[], bool] = lambda: True) -> None:
        plain = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            if only():
                now[0] += COSTS[cost]
                calls[cost] += 1
            return plain(*args, **options)

        monkeypatch.setattr(owner, name, call)

    train: Split = made.dataset.split("train")
    slow(train, "fetch", "fetch")
    from mtlbench.training import loop

    found: dict[str, Any] = {}
    build = loop.build

    def built(*args: Any) -> Any:
        model, weighting = build(*args)
        found.update(model=model, weighting=weighting)
        slow(model.architecture, "forward", "forward", lambda: bool(model.training))
        slow(weighting, "forward", "weighting")
        return model, weighting

    monkeypatch.setattr(loop, "build", built)
    loss: Loss = made.dataset.tasks[0].loss
    slow(type(loss), "__call__", "loss")
    slow(torch.autograd, "backward", "backward")
    slow(torch.autograd, "grad", "backward")
    slow(torch.optim.Adam, "step", "optimiser")
    before = torch.autograd.backward, torch.autograd.grad
    kept = outcome(made, profile=True)
    assert (torch.autograd.backward, torch.autograd.grad) == before
    assert not found["weighting"]._forward_pre_hooks
    assert facts(kept) | {"profile": None} == expected
    seen = kept.profile.seconds
    steps = kept.profile.steps
    assert steps == kept.steps > 0
    assert min(calls.values()) >= steps / 2
    spent = {name: COSTS[name] * count for name, count in calls.items()}
    assert seen["data"] == spent["fetch"]
    assert seen["forward"] == spent["forward"] + spent["loss"]
    assert seen["gradients"] == spent["backward"]
    assert seen["weighting"] == spent["weighting"]
    assert seen["optimiser"] == spent["optimiser"]
    assert seen["move"] == seen["rest"] == seen["evaluation"] == 0
    assert kept.profile.total == sum(spent.values())
    assert kept.profile.waiting == spent["fetch"] / kept.profile.training


def test_phases_add_up_to_the_clock_on_the_wall(experiment: Callable[..., Any]) -> None:
    made = experiment(weight="famo", epochs=2)
    began = time.perf_counter()
    found = outcome(made, profile=True).profile
    assert 0.3 < found.total / (time.perf_counter() - began) <= 1
    assert set(found.seconds) == {*STEP, *BESIDE}
    assert all(found.seconds[phase] > 0 for phase in ("data", "forward", "gradients", "evaluation"))
    assert outcome(made).profile is None


def test_the_command_prints_it_and_keeps_it_beside_the_record(tmp_path: Path, tiny_plugin: Path) -> None:
    def call(folder: str, *flags: str) -> Any:
        arguments = ["--data", "tiny", "--plugin", str(tiny_plugin), "--epochs", "1", "--device", "cpu"]
        places = ["--results", str(tmp_path / folder), "--data-dir", str(tmp_path / "data"), "--no-baseline"]
        found = CliRunner().invoke(cli, ["run", *arguments, *places, *flags])
        assert found.exit_code == 0, found.stderr
        return found

    shown = call("a", "--profile").stdout
    assert "waiting for data" in shown
    assert "2 training steps" in shown
    assert all(what in shown for what in (*STEP.values(), *BESIDE.values()))
    (kept,) = (tmp_path / "a").glob("*/*/*.profile")
    values = json.loads(kept.read_text())
    assert values["steps"] == 2
    assert sum(values["seconds"].values()) == pytest.approx(values["total"], abs=1e-4)
    assert "--profile could measure" in call("a", "--profile").stderr
    (line,) = call("b", "--profile", "--json").stdout.splitlines()
    assert set(json.loads(line)["profile"]) == {"steps", "seconds", "training", "total", "waiting"}
    call("c")
    records = [next((tmp_path / name).glob("*/*/*.json")).read_bytes() for name in "abc"]
    assert records[0] == records[1] == records[2]
    assert not list((tmp_path / "c").glob("*/*/*.profile"))
    merged = CliRunner().invoke(cli, ["results", "merge", str(tmp_path / "a"), "-o", str(tmp_path / "m")])
    assert merged.exit_code == 0
    assert next((tmp_path / "m").glob("*/*/*.profile")).read_text() == kept.read_text()
