from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stores

from mtlbench.results import Store
from mtlbench.results.verify import leftovers, verify


def faults(store: Store) -> list[str]:
    return [fault for _, fault in verify(store)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return stores.fill(tmp_path / "results", archs=["hps"], weights=["ew", "rlw"], seeds=range(2))


def test_untouched_records_have_no_fault(store: Store) -> None:
    assert len(store.paths()) == 2 * (2 + 2)
    assert faults(store) == []


def _score(values: dict[str, Any]) -> None:
    values["metrics"]["segmentation"]["iou"] = 1.7


def _lost(values: dict[str, Any]) -> None:
    del values["metrics"]["depth"]


def _lucky(values: dict[str, Any]) -> None:
    values["selection"]["epoch"] = 1


def _longer(values: dict[str, Any]) -> None:
    values["history"] += values["history"]


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (lambda v: v["protocol"].update(lr=0.5), "it was edited"),
        (lambda v: v["spec"].update(seed=9), "it was edited"),
        (lambda v: v.update(comparability="0" * 16), "comparability is 0000"),
        (lambda v: v.update(status="splendid"), "unknown status 'splendid'"),
        (lambda v: v.update(status="failed"), "status failed with reason None"),
        (_score, "segmentation iou is 1.7, outside 0..1"),
        (_lost, "test scores of edges, segmentation for tasks"),
        (_lucky, "epoch 1 was selected, but 5 has the lowest score"),
        (_longer, "10 epochs in its history, 5 in its protocol"),
        (lambda v: v.update(history=[{}]), "its fields are not those of schema 1"),
        (
            lambda v: v["baselines"].update(depth=v["baselines"]["segmentation"]),
            "was trained on segmentation",
        ),
    ],
)
def test_what_was_edited_or_cannot_be_is_found(
    store: Store, edit: Callable[[dict[str, Any]], None], fault: str
) -> None:
    path = next(path for path in store.paths() if "hps+rlw" in str(path))
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))
    found = [(where, what) for where, what in verify(store) if fault in what]
    assert found, list(verify(store))
    assert found[0][0] == path


def test_a_moved_or_renamed_record_is_found(store: Store) -> None:
    path = next(path for path in store.paths() if "hps+rlw" in str(path))
    other = path.with_name("0123456789abcdef.json")
    path.rename(other)
    assert any("the file should be named" in fault for fault in faults(store))
    other.rename(path)
    moved = path.parents[1] / "hps+ew" / path.name
    path.rename(moved)
    assert any("the file belongs in scenes/hps+rlw" in fault for fault in faults(store))


def test_a_torn_file_is_a_fault_and_not_the_end(store: Store) -> None:
    path = store.paths()[0]
    path.write_text(path.read_text()[:100])
    assert any("is not a record" in fault for fault in faults(store))


def test_leftovers_are_temporary_files_and_checkpoints_of_finished_runs(store: Store) -> None:
    done = store.paths()[0]
    (done.parent / f".{done.name}.abc.tmp").write_text("half")
    folder = store.root / ".checkpoints"
    folder.mkdir()
    (folder / f"{done.stem}.pt").write_bytes(b"state")
    (folder / f"{'e' * 16}.pt").write_bytes(b"of a run that goes on")
    (store.root / ".slurm" / done.stem).mkdir(parents=True)
    (store.root / ".slurm" / done.stem / "7_0_log.err").write_text("Killed")
    wanted = {f".{done.name}.abc.tmp", f"{done.stem}.pt", "7_0_log.err"}
    assert {path.name for path in leftovers(store)} == wanted
    with store.claim(done.stem):  # it is being trained again
        assert {path.name for path in leftovers(store)} == {f".{done.name}.abc.tmp"}
    assert {path.name for path in leftovers(store)} == wanted
