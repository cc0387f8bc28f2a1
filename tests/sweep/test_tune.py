"""The search for weights and learning rate, as users run it."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mtlbench.cli import cli
from mtlbench.config import RunConfig, Tuning
from mtlbench.errors import MtlbenchError, RunFailedError
from mtlbench.experiment import Experiment
from mtlbench.leaderboard.board import build
from mtlbench.leaderboard.formats import command
from mtlbench.registry import Registry
from mtlbench.results import Store
from mtlbench.results.verify import verify
from mtlbench.sweep.state import State, begin
from mtlbench.training.report import Silence

pytest.importorskip("optuna", reason="mtlbench[tune] is not installed")


class Watcher(Silence):
    def notice(self, text: str) -> None: ...


class Machine:
    """An executor that trains in this process, and remembers what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.trained = 0

    def __call__(self, jobs: Any) -> list[State]:
        self.batches.append(list(jobs))
        states = begin(jobs)
        for state in states:
            if state.state == "queued":
                self.trained += 1
                state.job.experiment.execute(Watcher(), lambda: False)
                state.look()
        return states


@pytest.fixture
def config(tmp_path: Path, tiny_plugin: Path) -> RunConfig:
    return RunConfig(
        data="tiny", weight="fixed", epochs=1, batch_size=12, seeds=(3, 4), device="cpu",
        tasks=("mask", "side"), results=tmp_path / "results", data_dir=tmp_path, plugin=(tiny_plugin,),
    )  # fmt: skip


def search(
    config: RunConfig, registry: Registry, trials: int, lr: bool = False, ranges: Any = None
) -> tuple[RunConfig, Machine]:
    from mtlbench.sweep.tune import tune

    machine = Machine()
    return tune(config, trials, lr, ranges or {}, registry, machine, lambda line: None), machine


def test_the_best_trial_on_validation_wins(config: RunConfig, registry: Registry) -> None:
    found, machine = search(config, registry, 12)
    assert [len(batch) for batch in machine.batches] == [10, 1, 1]
    jobs = [job for batch in machine.batches for job in batch]
    assert jobs[0].config.weight == "fixed[weights=[1.0,1.0]]"
    assert len({job.run_id for job in jobs}) == 12
    for job in jobs:
        weights = job.run.weighting.parameters["weights"]
        assert math.isclose(sum(weights), 2, rel_tol=1e-3)
        assert min(weights) >= 2 * 0.1 / 10.1 * 0.999
        assert job.run.seed == 3
    # An independent look at what the trials left: the winner has the lowest score of all.
    records = list(Store(config.results / ".trials").records())
    assert len(records) == 12
    best = min(records, key=lambda record: record.values["selection"]["score"])
    assert (
        found.weight
        == f"fixed[weights={best.values['spec']['weighting']['parameters']['weights']}]".replace(", ", ",")
    )
    assert found.tuning == "tpe[trials=12,over=[weights],seed=3,lr=none]"
    assert replace(found, weight=config.weight, tuning=None) == config


def test_a_search_is_drawn_from_its_seed_and_goes_on_where_it_was(
    config: RunConfig, registry: Registry, tmp_path: Path
) -> None:
    first, machine = search(config, registry, 11)
    assert machine.trained == 11
    again, machine = search(config, registry, 11)
    assert (again, machine.trained) == (first, 0)
    _, machine = search(config, registry, 12)
    assert machine.trained == 1
    # Killed after four trials: the other seven are those that were made without a break.
    store = Store(config.results / ".trials")
    whole = {path.name: path.read_bytes() for path in store.paths()}
    for path in store.paths()[4:]:
        path.unlink()
    resumed, machine = search(config, registry, 12)
    assert machine.trained == 8
    assert {path.name: path.read_bytes() for path in store.paths()} == whole
    other, _ = search(replace(config, seeds=(5,), results=tmp_path / "other"), registry, 2)
    assert other.weight != resumed.weight


def test_other_weightings_are_tuned_over_the_learning_rate(config: RunConfig, registry: Registry) -> None:
    found, machine = search(replace(config, weight="mgda", lr=0.02), registry, 3)
    rates = [job.config.lr for job in machine.batches[0]]
    assert rates[0] == 0.02
    assert all(0.002 <= rate <= 0.2 for rate in rates)
    assert len(set(rates)) == 3
    assert (found.weight, found.lr) == ("mgda", 0.02)
    assert found.tuning is not None
    tuning = Tuning.parse(found.tuning)
    assert (tuning.trials, tuning.over, tuning.seed) == (3, ("lr",), 3)
    assert tuning.lr in rates
    both, _ = search(config, registry, 2, lr=True)
    assert both.tuning is not None
    assert Tuning.parse(both.tuning).over == ("weights", "lr")


def test_a_weightings_own_parameters_are_searched_with_the_same_budget(
    config: RunConfig, registry: Registry
) -> None:
    from mtlbench.sweep.tune import Range

    ranges = dict(map(Range.parse, ("c=0.05:0.95",)))
    found, machine = search(replace(config, weight="cagrad"), registry, 3, ranges=ranges)
    jobs = [job for batch in machine.batches for job in batch]
    values = [job.run.weighting.parameters["c"] for job in jobs]
    assert values[0] == registry.choose("weightings", "cagrad").parameters["c"]
    assert len(set(values)) == 3
    assert all(0.05 <= value <= 0.95 for value in values)
    assert found.tuning == "tpe[trials=3,over=[c],seed=3,lr=none]"
    best = min(Store(config.results / ".trials").records(), key=lambda r: r.values["selection"]["score"])
    assert f"c={best.values['spec']['weighting']['parameters']['c']}" in found.weight
    Experiment(replace(found, baseline=False, seeds=(3,)), registry).execute(Watcher(), lambda: False)
    (table,) = build(Store(config.results)).tables
    assert [row.label for row in table.rows] == ["hps+cagrad (tuned, 3 trials)"]
    for text, message in (
        ("cc=0:1", "cagrad has no parameter 'cc'. Did you mean 'c'"),
        ("c=1:0", "expected name=low:high"),
    ):
        with pytest.raises(MtlbenchError, match=message.replace("?", r"\?")):
            search(replace(config, weight="cagrad"), registry, 1, ranges=dict([Range.parse(text)]))
    with pytest.raises(MtlbenchError, match="'tuning' is over c, which is no parameter of ew"):
        Experiment(replace(config, weight="ew", tuning=found.tuning), registry)


def test_a_tuned_learning_rate_is_trained_with_and_stands_in_the_same_table(
    config: RunConfig, registry: Registry
) -> None:
    plain = replace(config, weight="ew", seeds=(3,))
    tuned = replace(plain, tuning="tpe[trials=4,over=[lr],seed=3,lr=0.01]")
    direct = replace(plain, lr=0.01)
    records = [
        Experiment(c, registry).execute(Watcher(), lambda: False)[0].run.record.values
        for c in (plain, tuned, direct)
    ]
    assert records[0]["comparability"] == records[1]["comparability"] != records[2]["comparability"]
    assert records[1]["history"] == records[2]["history"] != records[0]["history"]
    assert records[1]["baselines"] == records[0]["baselines"]
    assert len({values["run_id"] for values in records}) == 3
    assert "tuning" not in records[0]["spec"]


def test_failed_trials_are_told_and_lose(config: RunConfig, registry: Registry) -> None:
    from mtlbench.sweep.tune import tune

    def execute(jobs: Any, bad: int) -> list[State]:
        states = Machine()(jobs[bad:])
        return [*states, *(State(job, "failed", reason="it broke") for job in jobs[:bad])]

    lines: list[str] = []
    found = tune(config, 3, False, {}, registry, lambda jobs: execute(jobs, 2), lines.append)
    assert [("failed: it broke" in line) for line in lines] == [True, True, False]
    assert found.weight != "fixed[weights=[1.0,1.0]]"
    with pytest.raises(RunFailedError, match=r"all 3 trials of hps\+fixed failed: it broke"):
        tune(config, 3, False, {}, registry, lambda jobs: execute(jobs, 3), lines.append)
    with pytest.raises(MtlbenchError, match=r"one task .mask. leaves no weights to tune"):
        search(replace(config, tasks=("mask",)), registry, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid[trials=3,over=[lr]]", "'tuning' must be such as tpe"),
        ("tpe[trials=0,over=[weights]]", "'tuning' needs trials >= 1"),
        ("tpe[trials=3,over=[lr,lr],lr=0.1]", "'tuning' is over lr, parameters of the weighting or both"),
        ("tpe[trials=3,over=[lr]]", "'tuning' names lr where it is over lr"),
        ("tpe[trials=3,over=[lr],lr=-1.0]", "'tuning': lr must be finite and above 0"),
    ],
)
def test_a_note_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(MtlbenchError, match=message):
        Tuning.parse(text)


def test_a_tuned_row_from_the_command_line(config: RunConfig, tiny_plugin: Path) -> None:
    where = ["--plugin", str(tiny_plugin), "--results", str(config.results), "--device", "cpu"]
    arguments = [
        "tune", "--trials", "2", "--data", "tiny", "--epochs", "1", "--batch-size", "12",
        "--tasks", "mask,side",
    ]  # fmt: skip
    result = CliRunner().invoke(cli, [*arguments, *where], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "hps+fixed (tuned, 2 trials)" in result.output
    assert "trial 2/2: mean validation loss" in result.output
    store = Store(config.results)
    assert len(store.paths()) == 1 + 2
    assert len(Store(config.results / ".trials").paths()) == 2
    assert not list(verify(store))
    (table,) = build(store).tables
    row = next(row for row in table.rows if row.kind == "run")
    # The command beside the row makes exactly its run: nothing is trained.
    again = CliRunner().invoke(cli, [*shlex.split(command(row, table))[1:], *where], catch_exceptions=False)
    assert again.exit_code == 0
    assert len(store.paths()) == 3


def test_tuned_rows_have_names_of_their_own(config: RunConfig, registry: Registry) -> None:
    notes = {
        None: "hps+ew",
        "tpe[trials=4,over=[lr],lr=0.01]": "hps+ew (tuned, 4 trials, seed 0)",
        "tpe[trials=4,over=[lr],lr=0.02,seed=1]": "hps+ew (tuned, 4 trials, seed 1)",
    }
    for note in notes:
        Experiment(replace(config, weight="ew", seeds=(3,), baseline=False, tuning=note), registry).execute(
            Watcher(), lambda: False
        )
    (table,) = build(Store(config.results)).tables
    assert sorted(row.label for row in table.rows) == sorted(notes.values())
    assert table.reference == "hps+ew"
