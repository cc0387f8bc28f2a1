"""What a run logs of its task gradients, and that looking changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import facts, outcome, outcome_in_pieces

from mtlbench.training import conflicts
from mtlbench.training.model import build, build_engine


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(1, 6), st.integers(0, 10**6))
def test_the_summary_is_the_mean_over_the_steps_in_which_two_tasks_met(
    size: int, steps: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    jacobians = torch.randn(steps, size, 7, generator=draw, dtype=torch.float64)
    jacobians[torch.rand(steps, size, generator=draw) < 0.2] = 0
    absent = torch.rand(steps, size, generator=draw) < 0.2
    sums = None
    for jacobian, gone in zip(jacobians, absent, strict=True):
        gram = jacobian @ jacobian.T
        gram[gone], gram[:, gone] = torch.nan, torch.nan
        sums = conflicts.add(sums, gram)
    names = [f"t{i}" for i in range(size)]
    found = conflicts.summary(sums, names)
    assert found is not None
    for i in range(size):
        lengths = [
            float(j[i].norm())
            for j, gone in zip(jacobians, absent, strict=True)
            if j[i].any() and not gone[i]
        ]
        assert found["steps"][names[i]] == len(lengths)
        expected = math.fsum(lengths) / len(lengths) if lengths else None
        assert found["norm"][names[i]] == (None if expected is None else pytest.approx(expected, rel=1e-3))
        for k in range(i + 1, size):
            cosines = [
                float(torch.cosine_similarity(j[i], j[k], dim=0))
                for j, gone in zip(jacobians, absent, strict=True)
                if j[i].any() and j[k].any() and not (gone[i] or gone[k])
            ]
            cosine, rate = (found[key][names[i]][names[k]] for key in ("cosine", "conflict"))
            if not cosines:
                assert cosine is None
                assert rate is None
                continue
            assert cosine == pytest.approx(math.fsum(cosines) / len(cosines), abs=1e-4)
            assert rate == pytest.approx(sum(c < 0 for c in cosines) / len(cosines), abs=1e-4)


SETTINGS = [
    {"arch": "mmoe", "weight": "uw"},
    {"arch": "hps", "weight": "sign-drop"},
    {"arch": "hps", "weight": "sign-drop", "grad": "features"},
    {"arch": "hps", "weight": "gradnorm"},
    {"arch": "hps", "weight": "rlw", "data": "tiny[apart=true]"},
    {"arch": "hps", "weight": "dwa", "data": "tiny[missing=0.5]"},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: "-".join(s.values()))
def test_a_probe_changes_nothing_but_the_log(
    setting: dict[str, Any], experiment: Callable[..., Any], tmp_path: Path
) -> None:
    plain, probed = experiment(**setting), experiment(**setting, probe=2)
    assert probed._identity(probed.run) == plain._identity(plain.run)
    without, found = facts(outcome(plain)), facts(outcome(probed))
    assert facts(outcome_in_pieces(probed, tmp_path / "c.pt")) == found
    logged = [row.pop("gradients") for row in found["history"]]
    assert [row.pop("gradients") for row in without["history"]] == [None] * len(logged)
    assert found == without
    assert all(-1 <= c <= 1 for row in logged for pair in row["cosine"].values() for c in pair.values() if c)
    # Three steps an epoch, every second one of all: steps 0 and 2, then 4 (numbered 3..5), then 6 and 8.
    assert [max(row["steps"].values()) for row in logged] == [2, 1, 2]


@pytest.mark.parametrize("grad", ["parameters", "features"])
def test_a_gram_method_logs_what_it_sees_without_a_probe(grad: str, experiment: Callable[..., Any]) -> None:
    setting = experiment(weight="mgda", grad=grad)
    rows = outcome(setting).history
    assert [row["gradients"]["steps"] for row in rows] == [dict.fromkeys(setting.run.tasks, 3)] * 3
    # A method that reuses its weights has a matrix on every third step only.
    assert outcome(experiment(weight="momentum")).history[0]["gradients"]["steps"]["box"] == 1


@pytest.mark.parametrize("weight", ["ew", "sign-drop", "mgda"])
def test_the_matrix_of_a_step_is_that_of_plain_autograd(weight: str, experiment: Callable[..., Any]) -> None:
    setting = experiment(weight=weight)
    model, weighting = build(setting.run, setting.dataset)
    batch = setting.dataset.split("train").fetch(torch.arange(8)).to(torch.device("cpu"))
    shared = list(model.architecture.shared_parameters())
    outputs = model(batch.inputs)
    rows = []
    for task in setting.dataset.tasks:
        loss = task.loss(outputs[task.name], batch.targets[task.name])
        found = torch.autograd.grad(loss, shared, retain_graph=True)
        rows.append(torch.cat([g.reshape(-1) for g in found]).double())
    expected = torch.stack(rows) @ torch.stack(rows).T
    step = build_engine(setting.run, setting.dataset, model, weighting).step(batch, probe=True)
    assert step.gram is not None
    torch.testing.assert_close(step.gram, expected, rtol=1e-4, atol=1e-9)
    assert step.gram.equal(step.gram.T)


def test_an_absent_task_has_no_entry(experiment: Callable[..., Any]) -> None:
    setting = experiment(weight="mgda")
    model, weighting = build(setting.run, setting.dataset)
    batch = setting.dataset.split("train").fetch(torch.arange(8)).to(torch.device("cpu"))
    gram = build_engine(setting.run, setting.dataset, model, weighting).step(batch, ["mask", "box"]).gram
    assert gram is not None
    assert gram.isnan().tolist() == [[False, True, False], [True, True, True], [False, True, False]]


def test_a_penalty_is_logged(experiment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from mtlbench_zoo.architectures.hps import HardParameterSharing

    plain = HardParameterSharing.forward
    monkeypatch.setattr(
        HardParameterSharing,
        "forward",
        lambda *a, **k: replace(plain(*a, **k), penalty=torch.tensor(0.25, requires_grad=True)),
    )
    for weight in ("ew", "mgda"):
        rows = outcome(experiment(weight=weight)).history
        assert [row["penalty"] for row in rows] == [0.25] * 3
    monkeypatch.undo()
    assert outcome(experiment()).history[0]["penalty"] is None
