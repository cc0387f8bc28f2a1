"""``--augment``: whole runs on augmented samples, as people use them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from runs import CPU, facts, outcome, outcome_in_pieces

from mtlbench.cli import cli
from mtlbench.config import RunConfig
from mtlbench.data.augment import Augment
from mtlbench.experiment import Experiment
from mtlbench.leaderboard.board import build
from mtlbench.leaderboard.ci import rerun
from mtlbench.leaderboard.formats import command
from mtlbench.leaderboard.formats import facts as table_facts
from mtlbench.parallel import Ranks
from mtlbench.registry import Registry
from mtlbench.results import Store
from mtlbench.sweep.grid import plan, read
from mtlbench.sweep.worker import dump, load
from mtlbench.training.augmented import augmented, build_augment
from mtlbench.training.loop import _Loader
from mtlbench.training.report import Silence

Make = Callable[..., Any]
ALL = ("scale", "crop", "flip", "jitter")


class Quiet(Silence):
    def notice(self, text: str) -> None:
        pass


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"data": "tiny[apart=true]", "weight": "mgda"},
        {"aux": ("edges", "denoise"), "accumulate": 2},
        {"data": "tiny[missing=0.3]", "weight": "modo", "batch_size": 2},
    ],
    ids=str,
)
def test_the_same_run_read_ahead_or_not_in_pieces_or_whole(
    experiment: Make, tmp_path: Path, more: dict[str, Any]
) -> None:
    whole = facts(outcome(experiment(augment=ALL, workers=0, epochs=2, **more)))
    assert whole["status"] == "ok", whole["reason"]
    assert facts(outcome(experiment(augment=ALL, workers=2, epochs=2, **more))) == whole
    pieces = outcome_in_pieces(experiment(augment=ALL, epochs=2, **more), tmp_path / "state.pt")
    assert facts(pieces) == whole


def test_training_samples_alone_are_augmented(experiment: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = Augment.__call__

    def counted(self: Augment, batch: Any, draw: Any) -> Any:
        seen.append(len(batch.inputs))
        return original(self, batch, draw)

    made = experiment(augment=("flip", "crop"), epochs=2)
    monkeypatch.setattr(Augment, "__call__", counted)
    trained = outcome(made)
    assert sum(seen) == trained.samples == 2 * 24
    idle = ("flip[p=1e-12]", "scale[factors=[1]]", "jitter[brightness=0,contrast=0,saturation=0]")
    plain = facts(outcome(experiment(epochs=2)))
    assert facts(outcome(experiment(augment=idle, epochs=2))) == plain, "nothing changes nothing"
    assert trained.history != plain["history"]


def test_every_epoch_shows_a_sample_anew_and_baselines_see_what_the_run_sees(experiment: Make) -> None:
    made = experiment(augment=ALL)
    run, singles = made.runs(3)
    assert singles["box"].protocol["augment"] == run.protocol["augment"]
    split, first = made.dataset.split("train"), torch.arange(8)

    def shown(tasks: Any, epoch: int) -> Any:
        return augmented(split, build_augment(run.protocol, made.dataset, tasks), 3, epoch, "").fetch(first)

    tasks = made.dataset.tasks
    joint, alone = shown(tasks, 0), shown([task for task in tasks if task.name == "box"], 0)
    assert torch.equal(joint.inputs, alone.inputs)
    torch.testing.assert_close(joint.targets["box"], alone.targets["box"], equal_nan=True, rtol=0, atol=0)
    assert list(alone.targets) == ["box"], "targets that nobody trains are not moved"
    assert (shown(tasks, 1).inputs != joint.inputs).flatten(1).any(1).all()


def test_ranks_and_micro_batches_share_the_same_samples(experiment: Make) -> None:
    made = experiment(augment=ALL, accumulate=2)
    split, tasks = made.dataset.split("train"), made.dataset.tasks
    augment = build_augment(made.run.protocol, made.dataset, tasks)

    def inputs(size: int) -> torch.Tensor:
        loaders = [
            _Loader(split, list(made.run.tasks), made.run, 1, Ranks(rank, size), augment)
            for rank in range(size)
        ]
        steps = [next(loader.epoch(1, 0))[0][0] for loader in loaders]
        return torch.cat([part.inputs for parts in zip(*steps, strict=True) for part in parts])

    assert torch.equal(inputs(2), inputs(1))


def test_auxiliary_targets_are_those_of_the_augmented_image(experiment: Make) -> None:
    made = experiment(augment=ALL, aux=("reconstruction", "edges"))
    augment = build_augment(made.run.protocol, made.dataset, made.dataset.tasks)
    found = augmented(made.dataset.split("train"), augment, 0, 0, "").fetch(torch.arange(8)).to(CPU)
    assert torch.equal(found.targets["reconstruction"], found.inputs)
    edges = Registry().choose("auxiliary", "edges").build()
    assert torch.equal(found.targets["edges"], edges.target(found.inputs))
    plain = made.dataset.split("train").fetch(torch.arange(8)).to(CPU)
    assert not torch.equal(plain.inputs, found.inputs)


def test_a_box_out_of_sight_costs_no_step(experiment: Make) -> None:
    """At zoom 8 most boxes of tiny are gone; a step without any box goes on with the other tasks."""
    made = experiment(augment=("scale[factors=[8]]",), batch_size=2, weight="uw", epochs=1)
    assert made.dataset.partial is False
    found = outcome(made)
    assert (found.status, found.steps) == ("ok", 12)


@pytest.fixture
def run(tmp_path: Path, tiny_plugin: Path) -> Callable[..., Result]:
    def call(*flags: str, data: str = "tiny", verb: tuple[str, ...] = ("run",)) -> Result:
        where = ["--data-dir", str(tmp_path / "data"), "--plugin", str(tiny_plugin)]
        if verb == ("run",):
            where += [
                "--results",
                str(tmp_path / "results"),
                "--epochs",
                "1",
                "--device",
                "cpu",
                "--data",
                data,
            ]
        return CliRunner().invoke(cli, [*verb, *where, *flags])

    return call


def test_record_table_and_command_tell_of_it(
    run: Callable[..., Result], tmp_path: Path, tiny_plugin: Path
) -> None:
    plain = json.loads(run("--json").stdout)
    told = json.loads(run("--json", "--augment", "scale,flip[p=0.25]").stdout)
    assert "augment" not in plain["protocol"]
    assert told["protocol"]["augment"] == [
        {"name": "scale", "parameters": {"factors": [1.0, 1.2, 1.5]}},
        {"name": "flip", "parameters": {"p": 0.25}},
    ]
    assert told["comparability"] != plain["comparability"], "another protocol, another table"
    assert told["data"]["fingerprint"] == plain["data"]["fingerprint"]
    assert sorted(told["baselines"]) == sorted(plain["baselines"])
    (tmp_path / "run.toml").write_text('augment = ["scale[factors=[1,1.2,1.5]]", "flip[p=0.25]"]\n')
    again = run("--json", "--config", str(tmp_path / "run.toml"))
    assert json.loads(again.stdout)["run_id"] == told["run_id"], "spelled out or by default: one run"
    store = Store(tmp_path / "results")
    tables = {table.key: table for table in build(store).tables}
    table = tables[told["comparability"]]
    row = next(row for row in table.rows if row.kind == "run")
    assert "augment scale[factors=[1.0,1.2,1.5]],flip[p=0.25]" in table_facts(table)
    assert "--augment 'scale[factors=[1.0,1.2,1.5]],flip[p=0.25]'" in command(row, table)
    record = next(r for r in store.records() if r.run_id == told["run_id"])
    assert rerun(record, tmp_path / "data", [tiny_plugin], Quiet()) == ("equal to the last bit", [])


def test_a_sweep_trains_what_it_planned(registry: Registry, tmp_path: Path) -> None:
    common = {"data": "tiny", "epochs": 1, "device": "cpu", "results": tmp_path, "data_dir": tmp_path}
    configs = read(None, common | {"arch": "hps,mtan", "augment": "scale,crop[pad=0.1]"})
    assert [config.augment for config in configs] == [("scale", "crop[pad=0.1]")] * 2
    for job in plan(configs, registry).jobs:
        again = Experiment(load(dump(job.config)), registry)
        assert again.look(again.runs(0)[0])[0] == job.run_id
    assert RunConfig().augment == ()


@pytest.mark.parametrize(
    ("flags", "data", "message"),
    [
        (("--augment", "flop"), "tiny", "unknown augmentation 'flop'. Did you mean 'flip'"),
        (("--augment", "scale[factor=2]"), "tiny", "unknown parameter 'factor'. Did you mean 'factors'?"),
        (("--augment", "flip,flip"), "tiny", "'augment' names something twice"),
        (("--augment", "flip"), "digits", "a mirrored image has no right target for 'left'"),
        (("--augment", "jitter"), "relatedness", "has no images, which --augment changes"),
    ],
)
def test_a_wrong_word_gets_one_clear_line(
    run: Callable[..., Result], flags: tuple[str, ...], data: str, message: str
) -> None:
    result = run(*flags, data=data)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_preview_shows_augmented_samples(run: Callable[..., Result], tmp_path: Path) -> None:
    def sheet(*flags: str) -> np.ndarray:
        path = tmp_path / "sheet.png"
        result = run("tiny", "-o", str(path), "--images", "0-3", *flags, verb=("data", "preview"))
        assert result.exit_code == 0, result.output
        return np.asarray(Image.open(path).convert("RGB"))

    augmented_sheet = sheet("--augment", "flip[p=1],scale")
    assert np.array_equal(augmented_sheet, sheet("--augment", "flip[p=1],scale"))
    assert not np.array_equal(augmented_sheet, sheet())
    refused = run("tiny", "-o", "x.png", "--split", "val", "--augment", "flip", verb=("data", "preview"))
    assert refused.exit_code == 2
    assert refused.stderr == "error: --augment changes training samples only, and --split is val\n"
