"""Every weighting trains on the pets sample: without a warning or NaN, and the same again when killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Silence

from mtlbench.config import RunConfig
from mtlbench.errors import Interrupted
from mtlbench.experiment import Experiment
from mtlbench.registry import Registry
from mtlbench.training import checkpoint as checkpoints
from mtlbench.training.model import build
from mtlbench_zoo.datasets import _pets_sample as drawn

REGISTRY = Registry()
METHODS = sorted(p.name for p in REGISTRY.plugins("weightings") if p.module.startswith("mtlbench_zoo."))
SPECS = {"fixed": "fixed[weights=[1,0.5,2]]"}
VARIANTS = [
    "mgda[solver=frank-wolfe]",
    "mgda[solver=cvxpy]",
    "gradvac[blocks=layer]",
    "gradvac[blocks=matrix]",
    "ema[of=modo]",
    "ema[of=imtl]",
    "every[of=imtl,k=2]",
    "dwa[window=2]",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built-in sample, of fewer drawings than it has elsewhere."""
    folder = tmp_path_factory.mktemp("pets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn, "COUNTS", (12, 4, 4))
        REGISTRY.choose("datasets", "pets").build(data_dir=folder)
    return folder


class Watcher(Silence):
    def notice(self, text: str) -> None:
        """Say nothing."""


class _Run:
    """One configuration, in a results folder of its own."""

    def __init__(self, weight: str, arch: str, data: Path, results: Path) -> None:
        self.config = RunConfig(
            weight=weight, arch=arch, encoder="unet[depth=2,width=4]", data="pets", epochs=3, batch_size=2,
            device="cpu", baseline=False, save_model=True, results=results, data_dir=data,
        )  # fmt: skip

    def __call__(self, resume: bool = False, stopped: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """Train it and return its record."""
        self.experiment = Experiment(replace(self.config, resume=resume), REGISTRY)
        (result,) = self.experiment.execute(Watcher(), stopped)
        assert not result.run.cached
        self.record = result.run.record
        found: dict[str, Any] = json.loads(self.record.dumps())
        return found

    def model(self) -> dict[str, torch.Tensor]:
        path = self.experiment.store.model(self.record)
        state: dict[str, torch.Tensor] = checkpoints.load(path)["model"]
        return state


@pytest.mark.parametrize("arch", ["hps", "mmoe[experts=2]"])
@pytest.mark.parametrize("weight", [*METHODS, *VARIANTS])
def test_it_trains_and_is_the_same_when_killed(weight: str, arch: str, data: Path, tmp_path: Path) -> None:
    spec = SPECS.get(weight, weight)
    whole = _Run(spec, arch, data, tmp_path / "whole")
    record = whole()
    assert record["status"] == "ok", record["reason"]
    assert record["budget"]["samples"] == 3 * 12
    for row in record["history"]:
        losses = [*row["train"].values(), *(task["loss"] for task in row["val"].values())]
        assert all(loss is not None for loss in losses)  # what is not finite is null
        assert row["weights"] is None or None not in row["weights"].values()
    _check_that_everything_moved(whole)

    killed = _Run(spec, arch, data, tmp_path / "killed")
    steps, calls = record["budget"]["steps"] // 3, count(1)
    assert steps >= 2
    with pytest.raises(Interrupted):
        killed(stopped=lambda: next(calls) == steps + 2)  # within the second epoch
    assert killed(resume=True) == record
    expected = whole.model()
    assert all(value.equal(expected[name]) for name, value in killed.model().items())


def _check_that_everything_moved(run: _Run) -> None:
    before, _ = build(run.experiment.run, run.experiment.dataset)
    after = run.model()
    for name, parameter in before.named_parameters():
        assert after[name].isfinite().all(), name
        assert not after[name].equal(parameter), f"{name} was not trained"


def test_no_weighting_is_left_out() -> None:
    assert len(METHODS) >= 40
    assert {spec.partition("[")[0] for spec in VARIANTS} <= set(METHODS)
