from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from mtlbench.errors import MtlbenchError
from mtlbench.results import Cost, Record, Store, canonical, comparability_key, run_id

COST = Cost(1.5, 2.5, 300.0, "cpu", "2026-01-01T00:00:00+00:00")


def make(seed: int = 0, **changes: Any) -> Record:
    metric = {"unit": "1", "higher_is_better": True, "version": 1, "auxiliary": False}
    values: dict[str, Any] = {
        "schema": 1,
        "attempt": 1,
        "status": "ok",
        "reason": None,
        "spec": {
            "architecture": {"name": "hps", "parameters": {}},
            "weighting": {"name": "ew", "parameters": {}},
            "encoder": {"name": "conv", "parameters": {}},
            "dataset": {"name": "tiny", "parameters": {}},
            "tasks": ["a"],
            "grad": "parameters",
            "seed": seed,
        },
        "protocol": {"epochs": 1},
        "data": {
            "title": "tiny",
            "fingerprint": "f",
            "counts": {"train": 1},
            "metrics": {"a": {"m": metric}},
        },
        "code": {},
        "env": {},
        "parameters": {"total": 1},
        "budget": {},
        "selection": None,
        "metrics": {"a": {"m": 0.5}},
        "losses": {},
        "history": [],
        "baselines": {},
    }
    values |= changes
    values["run_id"] = run_id(values)
    values["comparability"] = comparability_key(values)
    return Record(values)


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    store, record = Store(tmp_path), make()
    store.add(record, COST)
    found = store.find(record.folder, record.run_id)
    assert found == record
    assert store.cost(record) == COST
    assert (tmp_path / "tiny" / "hps+ew" / f"{record.run_id}.json").read_text() == record.dumps()
    assert [r.run_id for r in store.records()] == [record.run_id]


def test_the_first_writer_wins_and_force_adds_an_attempt(tmp_path: Path) -> None:
    store, first = Store(tmp_path), make()
    other = Record({**first.values, "metrics": {"a": {"m": 0.9}}})
    store.add(first, COST)
    assert store.add(other, COST) == first
    again = store.add(other, COST, again=True)
    assert again.values["attempt"] == 2
    assert store.find(first.folder, first.run_id) == again
    assert (tmp_path / "tiny" / "hps+ew" / f"{first.run_id}.json").read_text() == first.dumps()


def test_no_hard_links_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    store, record = Store(tmp_path), make()
    other = Record({**record.values, "metrics": {"a": {"m": 0.9}}})
    assert store.add(record, COST) == record
    assert store.add(other, COST) == record
    assert sorted(p.suffix for p in tmp_path.rglob("*") if p.is_file()) == [".cost", ".json"]


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, record = Store(tmp_path), make()
    store.add(record, COST)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MtlbenchError, match=r"can't write record .* No space left on device; make room"):
        store.add(make(seed=1), COST)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("text", "word"),
    [("{", "not a record"), ("[]", "lacks"), ("{}", "lacks schema")],
    ids=["torn", "list", "empty"],
)
def test_a_foreign_file_is_named(tmp_path: Path, text: str, word: str) -> None:
    record = make()
    path = tmp_path.joinpath(*record.folder, f"{record.run_id}.json")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(MtlbenchError, match=word):
        Store(tmp_path).find(record.folder, record.run_id)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    text = json.dumps({**make().values, "schema": 99})
    with pytest.raises(MtlbenchError, match="schema 99"):
        Record.loads(text, "x.json")


def test_a_damaged_clock_costs_no_result(tmp_path: Path) -> None:
    store, record = Store(tmp_path), make()
    store.add(record, COST)
    (tmp_path / "tiny" / "hps+ew" / f"{record.run_id}.cost").write_text("{")
    assert store.cost(record) is None
    assert store.find(record.folder, record.run_id) == record


def test_an_unwritable_folder_is_said_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MtlbenchError, match="can't be written"):
        Store(tmp_path / "file").check()


def test_the_run_id_depends_on_values_not_on_their_order() -> None:
    record = make()
    shuffled = dict(reversed(list(record.values.items())))
    assert run_id(shuffled) == record.run_id
    assert run_id(make(seed=1).values) != record.run_id
    assert canonical({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'


def test_comparability_ignores_the_method_and_heeds_the_protocol() -> None:
    one, other = make(), make(seed=3)
    assert one.values["comparability"] == other.values["comparability"]
    assert make(protocol={"epochs": 2}).values["comparability"] != one.values["comparability"]


def _write_for_ever(root: str, text: str) -> None:
    record = Record(json.loads(text))
    seed = 0
    while True:
        seed += 1
        Store(Path(root)).add(make(seed=seed % 5, history=[{"n": i} for i in range(2000)]), COST)
        Store(Path(root)).add(record, COST, again=True)


def test_killed_writers_leave_no_torn_record(tmp_path: Path) -> None:
    record = make(history=[{"n": i} for i in range(2000)])
    context = multiprocessing.get_context("fork")
    for pause in (0.05, 0.1, 0.15, 0.2):
        writers = [
            context.Process(target=_write_for_ever, args=(str(tmp_path), json.dumps(record.values)))
            for _ in range(2)
        ]
        for writer in writers:
            writer.start()
        while not any(tmp_path.rglob("*.json")):  # a busy machine takes its time to start them
            time.sleep(0.01)
        time.sleep(pause)
        for writer in writers:
            assert writer.pid is not None
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
    found = list(Store(tmp_path).records())
    assert found
    assert all(len(r.values["history"]) == 2000 for r in found)
    attempts = sorted(r.values["attempt"] for r in found if r.run_id == record.run_id)
    assert attempts == list(range(1, len(attempts) + 1))
