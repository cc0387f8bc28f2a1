"""Half precision: what methods see is the true gradient, and what overflows is skipped."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import facts, outcome, outcome_in_pieces

from mtlbench.errors import MtlbenchError, RunFailedError
from mtlbench.gradients import Precision, precision
from mtlbench.training.model import build, build_engine


def _step(setting: Any, name: Any) -> tuple[Any, torch.Tensor, Any]:
    run = setting.run
    model, weighting = build(run, setting.dataset)
    engine = build_engine(run, setting.dataset, model, weighting)
    engine.precision = Precision(name)
    batch = setting.dataset.split("train").fetch(torch.arange(8)).to(torch.device("cpu"))
    step = engine.step(batch, probe=True)
    return step, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), engine


@pytest.mark.parametrize(("name", "close"), [("bf16", 0.06), ("16", 0.01)])
@pytest.mark.parametrize(
    "method", ["ew", "mgda", "mgda features", "sign-drop features", "config", "every[of=mgda,k=2]"]
)
def test_gram_matrix_and_update_are_those_of_float32(
    method: str, name: str, close: float, experiment: Callable[..., Any]
) -> None:
    weight, _, grad = method.partition(" ")
    setting = experiment(weight=weight, grad=grad or "parameters")
    expected, update, _ = _step(setting, "32")
    seen, found, engine = _step(setting, name)
    assert found.dtype == torch.float32
    assert not any(p.grad.requires_grad for p in engine.architecture.parameters() if p.grad is not None)
    torch.testing.assert_close(seen.losses, expected.losses, rtol=close, atol=close)
    assert (seen.gram - expected.gram).norm() < close * expected.gram.norm()
    if weight in ("ew", "config"):  # others may decide otherwise where a sign is in doubt
        assert (found - update).norm() < 10 * close * update.norm()


@pytest.mark.parametrize(
    ("weight", "grad"),
    [("ew", "parameters"), *itertools.product(("mgda", "sign-drop"), ("parameters", "features"))],
)
def test_an_overflow_is_skipped_and_leaves_no_trace(
    weight: str, grad: str, experiment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "FIRST_SCALE", 2.0**24)
    setting = experiment(weight=weight, grad=grad)
    step, _, engine = _step(setting, "16")
    assert step.skipped
    assert step.losses.isfinite().all()
    assert engine.precision.scale == 2.0**23
    assert engine.state_dict()["age"] == 0


def test_a_run_counts_what_it_skips_and_goes_on_as_if_uninterrupted(
    experiment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(precision, "FIRST_SCALE", 2.0**20)
    monkeypatch.setattr(precision, "PATIENCE", 4)
    setting = experiment(weight="mgda", precision="16", epochs=4, clip=1.0)
    whole = facts(outcome(setting))
    assert whole["status"] == "ok"
    assert whole["skipped"] > 0
    assert whole["steps"] == 12 - whole["skipped"]
    assert facts(outcome_in_pieces(setting, tmp_path / "c.pt")) == whole


def test_bf16_trains(experiment: Callable[..., Any]) -> None:
    half = outcome(experiment(weight="pcgrad", precision="bf16", epochs=4))
    full = outcome(experiment(weight="pcgrad", epochs=4))
    assert half.status == "ok"
    assert half.skipped == 0
    assert all(value.dtype == full.model[name].dtype for name, value in half.model.items())
    for task, scores in half.test.items():
        assert scores.loss == pytest.approx(full.test[task].loss, rel=0.1)


def test_a_scale_that_helps_no_longer_ends_the_run() -> None:
    found = Precision("16")
    bad = [torch.tensor([1.0, torch.inf]), None]
    for _ in range(30):
        assert not found.unscale(bad)
    with pytest.raises(RunFailedError, match="range of float16"):
        found.unscale(bad)


def test_the_scale_grows_while_all_is_well() -> None:
    found = Precision("16")
    before = found.scale
    for _ in range(precision.PATIENCE):
        gradient = torch.tensor([before])
        assert found.unscale([gradient])
        assert gradient.item() == 1.0
    assert found.scale == 2 * before


def test_a_device_that_cannot_is_refused_in_one_line() -> None:
    with pytest.raises(MtlbenchError, match="--precision 16: meta can't compute in it"):
        Precision("16").check(torch.device("meta"))


def test_a_probe_that_overflows_costs_no_step(
    experiment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "FIRST_SCALE", 2.0**24)
    setting = experiment(weight="fixed[weights=[1e-6,1e-6,1e-6]]")
    batch = setting.dataset.split("train").fetch(torch.arange(8)).to(torch.device("cpu"))
    steps, gradients = [], []
    for probe in (False, True):
        model, weighting = build(setting.run, setting.dataset)
        engine = build_engine(setting.run, setting.dataset, model, weighting)
        engine.precision = Precision("16")
        steps.append(engine.step(batch, probe=probe))
        gradients.append([p.grad.tolist() for p in model.parameters() if p.grad is not None])
    assert not any(step.skipped for step in steps)
    assert gradients[0] == gradients[1]
    assert steps[1].gram is None
