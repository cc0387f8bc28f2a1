"""ema and every, and what every stateful method of this folder owes: a resumed run that is the same run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import facts, outcome, outcome_in_pieces
from torchjd import aggregation

from mtlbench.contracts import Need, Weighting
from mtlbench.errors import MtlbenchError
from mtlbench.registry import Registry
from mtlbench.testing import check_weighting, matrix_zoo, tiny_tasks
from mtlbench_zoo.weightings.ema import EMA
from mtlbench_zoo.weightings.every import Every

LOSSES = torch.ones(3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("cls", "parameters"),
    [
        (EMA, {}),
        (EMA, {"of": "gradnorm", "alpha": 0.5}),
        (EMA, {"of": "rlw"}),
        (EMA, {"of": "every[of=gradvac,k=3]"}),
        (Every, {}),
        (Every, {"of": "ema[of=pcgrad]", "k": 2}),
    ],
)
def test_conformance(cls, parameters) -> None:
    check_weighting(cls, **parameters)


def make(cls: Callable[..., Weighting], count: int = 3, **parameters: Any) -> Any:
    registry, tasks = Registry(), tiny_tasks(count)

    def inner(spec: str) -> Weighting:
        return registry.choose("weightings", spec).build(tasks=tasks, weightings=inner)

    return cls(tasks, inner, **parameters)


def gram(seed: int, count: int = 3) -> torch.Tensor:
    rows = torch.randn(count, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows @ rows.T


def test_ema_is_torchjds_cr_mogm() -> None:
    theirs, ours = (
        aggregation.CRMOGMWeighting(aggregation.IMTLGWeighting(), alpha=0.7),
        make(EMA, of="imtl-g", alpha=0.7),
    )
    for seed in range(10):
        assert ours(gram(seed), LOSSES) == pytest.approx(theirs(gram(seed)), rel=1e-6)


def test_ema_without_memory_is_the_method_and_with_nothing_else_its_first_answer() -> None:
    plain, forgetful, stubborn = make(EMA).inner, make(EMA, alpha=0.0), make(EMA, alpha=1.0)
    first = plain(gram(0), LOSSES)
    for seed in range(5):
        assert torch.equal(forgetful(gram(seed), LOSSES), plain(gram(seed), LOSSES))
        assert torch.equal(stubborn(gram(seed), LOSSES), first)


def test_the_average_of_a_task_starts_when_it_is_seen_and_rests_without_it() -> None:
    weighting = make(EMA, of="gradnorm", alpha=0.5)
    weighting.active = torch.tensor([0, 2])
    weighting(gram(0, 2), LOSSES[:2])
    assert weighting.inner.active.tolist() == [0, 2]
    assert weighting.seen.tolist() == [True, False, True]
    weighting.active = torch.arange(3)
    weighting.inner.state[0, 1] = 5.0  # its weights
    assert weighting(gram(1), LOSSES)[1] == 5.0
    kept = float(weighting.average[1])
    weighting.active = torch.tensor([0, 2])
    weighting(gram(2, 2), LOSSES[:2])
    assert float(weighting.average[1]) == kept


@pytest.mark.parametrize("of", ["mgda", "gradnorm", "rlw", "pcgrad", "every[of=nash,k=7]"])
def test_a_wrapper_is_what_it_wraps(of: str) -> None:
    weighting = make(EMA, of=of)
    inner = weighting.inner
    assert (weighting.needs, weighting.heads, weighting.every) == (inner.needs, inner.heads, inner.every)
    assert weighting.properties == inner.properties - {"non-conflicting"}
    assert EMA.needs is Need.GRAM  # the class is not changed by its instances


def test_every_sets_how_often_weights_are_computed() -> None:
    assert make(Every).every == 10
    assert make(Every, of="every[of=mgda,k=3]", k=5).every == 5
    assert make(EMA, of="every[of=mgda,k=3]").every == 3
    assert make(Every).properties == make(Every).inner.properties


@pytest.mark.parametrize(
    ("cls", "parameters", "message"),
    [
        (EMA, {"of": "graddrop"}, "ema: 'graddrop' gives an update and no weights"),
        (EMA, {"of": "uw"}, "ema: 'uw' gives an objective and no weights"),
        (EMA, {"alpha": 1.5}, "ema: alpha must be from 0 to 1, got 1.5"),
        (EMA, {"of": "mgad"}, "unknown weighting 'mgad'. Did you mean 'mgda'"),
        (Every, {"of": "graddrop"}, "every: 'graddrop' has no weights"),
        (Every, {"of": "ew"}, "every: 'ew' weights losses, which costs nothing"),
        (Every, {"k": 0}, "every: k must be an integer >= 1, got 0"),
    ],
)
def test_what_cannot_be_wrapped_is_said_in_one_line(cls, parameters, message: str) -> None:
    with pytest.raises(MtlbenchError, match=message) as caught:
        make(cls, **parameters)
    assert "\n" not in str(caught.value)


def test_hooks_reach_the_wrapped_method_with_the_tasks_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    weighting, heard = make(Every, of="ema"), []
    innermost = weighting.inner.inner
    monkeypatch.setattr(
        type(innermost), "after_step", lambda self, losses: heard.append((self.active.tolist(), losses()))
    )
    monkeypatch.setattr(type(innermost), "after_epoch", lambda self, losses: heard.append(losses))
    weighting.active = torch.tensor([1])
    weighting.after_step(lambda: "again")
    weighting.after_epoch("means")
    assert heard == [([1], "again"), "means"]


def test_the_state_of_the_wrapped_method_and_its_generator_are_saved() -> None:
    first, resumed = make(EMA, of="pcgrad", count=8), make(EMA, of="pcgrad", count=8)
    first.inner.generator.manual_seed(3)
    matrices = [m for m in matrix_zoo() if m.count == 8]
    first(matrices[0].gram, matrices[0].losses)
    resumed.load_state_dict(first.state_dict())
    for matrix in matrices:
        assert torch.equal(first(matrix.gram, matrix.losses), resumed(matrix.gram, matrix.losses))


# ---- whole runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        {"weight": "gradvac[beta=0.5]", "data": "tiny[missing=0.5]"},
        {"weight": "gradnorm", "data": "tiny[missing=0.5]"},
        {"weight": "imtl[learning_rate=0.1]", "grad": "features"},
        {"weight": "graddrop[leak=0.2]", "grad": "features"},
        {"weight": "moco", "data": "tiny[missing=0.5]"},
        {"weight": "db-mtl"},
        {"weight": "excess", "arch": "mmoe"},
        {"weight": "ema[of=every[of=gradvac,k=2],alpha=0.5]"},
        {"weight": "every[of=ema[of=pcgrad],k=3]", "grad": "features", "data": "tiny[missing=0.5]"},
    ],
    ids=lambda method: method["weight"],
)
def test_an_interrupted_run_is_the_same_run(
    method: dict[str, Any], experiment: Callable[..., Any], tmp_path: Path
) -> None:
    setting = experiment(**({"arch": "hps"} | method))
    whole = facts(outcome(setting))
    assert whole["status"] == "ok", whole["reason"]
    assert facts(outcome_in_pieces(setting, tmp_path / "c.pt")) == whole


def test_weights_are_computed_at_every_third_step_only(
    experiment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtlbench_zoo.weightings.mgda import MGDA

    calls, solve = [], MGDA.forward
    monkeypatch.setattr(MGDA, "forward", lambda self, *given: calls.append(1) or solve(self, *given))
    setting = experiment(arch="hps", weight="every[of=mgda,k=3]")
    calls.clear()  # what was asked when the setting was checked
    assert outcome(setting).steps == 9
    assert len(calls) == 3
