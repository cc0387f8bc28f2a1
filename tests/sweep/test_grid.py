from __future__ import annotations

from pathlib import Path

import pytest

from mtlbench.config import RunConfig
from mtlbench.errors import MtlbenchError
from mtlbench.registry import Registry
from mtlbench.sweep.grid import label, plan, read
from mtlbench.sweep.local import slots
from mtlbench.sweep.state import State
from mtlbench.sweep.worker import dump, load


def test_the_product_of_all_lists() -> None:
    configs = read(None, {"arch": "hps,mmoe[experts=2],stl", "weight": "ew,uw", "seeds": "0-2", "lr": 0.1})
    assert [(c.arch, c.weight) for c in configs[:3]] == [
        ("hps", "ew"),
        ("hps", "uw"),
        ("mmoe[experts=2]", "ew"),
    ]
    assert len(configs) == 6
    assert all(c.seeds == (0, 1, 2) and c.lr == 0.1 for c in configs)


def test_commas_inside_brackets_do_not_separate() -> None:
    configs = read(None, {"weight": "fixed[weights=[1,2]],every[of=nash,k=2]"})
    assert [c.weight for c in configs] == ["fixed[weights=[1,2]]", "every[of=nash,k=2]"]


def test_encoders_by_task_are_one_value() -> None:
    assert len(read(None, {"encoder": "mask=unet,side=conv"})) == 1
    assert len(read(None, {"encoder": "unet,conv"})) == 2


def test_a_file_may_list_any_setting_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text('arch = ["hps", "mmoe"]\nlr = [0.1, 0.01]\nepochs = 3\nseeds = [4, 5]\n')
    configs = read(file, {"epochs": 2})
    assert len(configs) == 4
    assert {c.lr for c in configs} == {0.1, 0.01}
    assert all(c.seeds == (4, 5) and c.epochs == 2 for c in configs)
    assert label(configs[1], configs) == "hps+ew, lr 0.01"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("archs = ['hps']", "unknown key 'archs'. Did you mean 'arch'"),
        ("arch = []", "'arch' is an empty list"),
        ("lr = [0.1, -1]", "'lr' must be"),
    ],
)
def test_bad_grids_are_one_clear_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(text)
    with pytest.raises(MtlbenchError, match=message.replace("?", r"\?")):
        read(file, {})


def test_settings_survive_the_way_to_a_worker() -> None:
    config = RunConfig(seeds=(1, 2), tasks=("a",), plugin=(Path("x.py"),), head=("a=fcn",), results=Path("r"))
    assert load(dump(config)) == config


def test_places_share_devices_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [s["OMP_NUM_THREADS"] for s in slots(3, 0, 8)] == ["2"] * 3
    assert [s["CUDA_VISIBLE_DEVICES"] for s in slots(3, 2, 8)] == ["0", "1", "0"]
    assert slots(4, 0, 2)[0]["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert slots(1, 0, 8) == [{}]


def test_every_run_and_every_baseline_once(registry: Registry, tmp_path: Path, tiny_plugin: Path) -> None:
    settings = {
        "arch": "hps,mmoe", "weight": "ew,mgda,nope", "data": "tiny", "seeds": "0-1", "epochs": 1,
        "results": tmp_path, "plugin": (tiny_plugin,), "grad": None,
    }  # fmt: skip
    found = plan(read(None, settings), registry)
    assert len(found.jobs) == 2 * 2 * 2 + 2 * 3
    assert sum(job.baseline for job in found.jobs) == 6
    assert len({job.run_id for job in found.jobs}) == len(found.jobs)
    assert [title for title, _ in found.refused] == ["hps+nope", "mmoe+nope"]
    assert not any(job.cached for job in found.jobs)
    # What a worker is told to train is the run that was planned, also where it is a baseline.
    from mtlbench.experiment import Experiment

    for job in (found.jobs[0], found.jobs[-1]):
        again = Experiment(job.config, registry)
        assert again.look(again.runs(job.run.seed)[0])[0] == job.run_id


def test_what_a_process_tells_gives_the_time_that_is_left(
    registry: Registry, tmp_path: Path, tiny_plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"data": "tiny", "results": tmp_path, "plugin": (tiny_plugin,), "baseline": False}
    state = State(plan(read(None, settings), registry).jobs[0])
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    told: list[str] = []
    state.attempt()
    for event in (
        {"event": "started", "total": 50, "done": 20},  # it goes on from a checkpoint
        {"event": "notice", "text": "look"},
    ):
        state.hear(event, told.append)
    assert (state.state, state.remaining, told) == ("running", None, ["look"])
    clock[0] += 8
    state.hear({"event": "step", "done": 24, "epoch": 3}, told.append)
    assert state.remaining == 2 * (50 - 24)
    assert state.ended("it was lost", told.append, retries=1)
    assert (state.state, told[-1]) == ("queued", "hps + ew, seed 0: it was lost; it is started once more")
    state.attempt()
    state.hear({"event": "error", "text": "no such file"}, told.append)
    assert not state.ended(None, told.append, retries=1)
    assert (state.state, state.reason, state.record) == ("failed", "no such file", None)


def test_where_nothing_can_run_the_first_reason_is_told(registry: Registry, tmp_path: Path) -> None:
    configs = read(None, {"arch": "hpss,mmoo", "data": "tiny", "results": tmp_path})
    with pytest.raises(MtlbenchError, match=r"none of the 2 combinations can run; the first: .*'hps'"):
        plan(configs, registry)
