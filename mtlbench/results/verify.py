"""Whether a record can be what a run has left behind: finds edited, renamed and impossible ones."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mtlbench.errors import MtlbenchError
from mtlbench.results.record import SCHEMA, STATUSES, Record, comparability_key, run_id
from mtlbench.results.store import Store

_FRACTIONS = ("iou", "dice", "accuracy", "pixel_accuracy", "f1", "box_iou")
"""Metrics of unit 1 that lie in 0..1 whatever the data."""


def verify(store: Store) -> Iterator[tuple[Path, str]]:
    """Yield (file, what is wrong with it) for every fault that can be found without training again."""
    names: dict[str, Record] = {}
    for path in store.paths():
        try:
            record = store.read(path)
        except MtlbenchError as error:
            yield path, str(error)
            continue
        try:
            faults = [*_faults(record, path)]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            faults = [f"its fields are not those of schema {SCHEMA}: {type(error).__name__} {error}"]
        yield from ((path, fault) for fault in faults)
        names[record.run_id] = record
    for path in store.paths():
        try:
            record = store.read(path)
        except MtlbenchError:
            continue
        for task, name in record.values["baselines"].items():
            base = names.get(name)
            # One that is missing is no fault (--no-baseline); Δ-MTL is undefined then, and tables say so.
            if base is not None and (fault := _misfit(record, base, task)):
                yield path, f"its baseline {name} ({task}) {fault}"


def _faults(record: Record, path: Path) -> Iterator[str]:
    values = record.values
    if (found := run_id(values)) != values["run_id"]:
        yield f"run_id is {values['run_id']}, its content gives {found}: it was edited"
    attempt = int(values["attempt"])
    name = f"{record.run_id}.json" if attempt == 1 else f"{record.run_id}.{attempt}.json"
    if path.name != name:
        yield f"the file should be named {name}"
    if path.parts[-3:-1] != record.folder:
        yield f"the file belongs in {'/'.join(record.folder)}"
    if (key := comparability_key(values)) != values["comparability"]:
        yield f"comparability is {values['comparability']}, its content gives {key}"
    if values["status"] not in STATUSES:
        yield f"unknown status {values['status']!r}"
    if (values["status"] == "ok") != (values["reason"] is None):
        yield f"status {values['status']} with reason {values['reason']!r}"
    yield from _metrics(values)
    yield from _history(values)


def _metrics(values: Mapping[str, Any]) -> Iterator[str]:
    tasks, expected = values["spec"]["tasks"], values["data"]["metrics"]
    if values["status"] != "ok":
        if values["metrics"]:
            yield f"status {values['status']}, yet it has test scores"
        return
    if sorted(values["metrics"]) != sorted(tasks):
        yield f"test scores of {', '.join(values['metrics'])} for tasks {', '.join(tasks)}"
    for task, scores in values["metrics"].items():
        if task not in expected or sorted(scores) != sorted(expected[task]):
            yield f"{task}: the scores are not the task's metrics"
            continue
        for metric, score in scores.items():
            if score is None:
                continue
            if not isinstance(score, (int, float)) or not math.isfinite(score):
                yield f"{task} {metric} is {score!r}, not a number"
            elif expected[task][metric]["unit"] == "1" and metric in _FRACTIONS and not 0 <= score <= 1:
                yield f"{task} {metric} is {score:g}, outside 0..1"


def _history(values: Mapping[str, Any]) -> Iterator[str]:
    history, epochs = values["history"], values["protocol"]["epochs"]
    if len(history) > epochs:
        yield f"{len(history)} epochs in its history, {epochs} in its protocol"
    if values["budget"]["epochs"] != len(history):
        yield f"budget says {values['budget']['epochs']} epochs, the history has {len(history)}"
    if [row["epoch"] for row in history] != list(range(1, len(history) + 1)):
        yield "the epochs of its history are not 1, 2, 3, …"
        return
    if not history or values["selection"] is None:
        if values["status"] == "ok":
            yield "status ok, but no epoch was selected"
        return
    # The first of equal scores is the one that a run keeps.
    best = min(history, key=lambda row: row["score"])
    if (values["selection"]["epoch"], values["selection"]["score"]) != (best["epoch"], best["score"]):
        yield f"epoch {values['selection']['epoch']} was selected, but {best['epoch']} has the lowest score"


def _misfit(record: Record, base: Record, task: str) -> str | None:
    """Say why ``base`` can't be the single-task run of ``task`` that ``record`` is measured against."""
    spec, other = record.values["spec"], base.values["spec"]
    if other["tasks"] != [task]:
        return f"was trained on {', '.join(other['tasks'])}"
    if other["seed"] != spec["seed"]:
        return f"has seed {other['seed']}, the run has {spec['seed']}"
    if base.values["comparability"] != record.values["comparability"]:
        return "has another comparability key"
    return None


_TEMPORARY = re.compile(r"\..+\.(tmp|claim)")


def leftovers(store: Store) -> list[Path]:
    """Return what killed processes may have left: temporary files, checkpoints and logs of finished runs.

    Those of a run that is being trained again, with ``--force``, are none.
    """
    found = [p for p in store.root.rglob(".*") if p.is_file() and _TEMPORARY.fullmatch(p.name)]
    finished = {path.name.partition(".")[0] for path in store.paths()}
    kept = [(p, p.name.partition(".")[0]) for p in (store.root / ".checkpoints").glob("*")]
    kept += [(p, p.parent.name) for p in (store.root / ".slurm").glob("*/*")]
    known = {name for _, name in kept} & finished
    idle = {name for name in known if not store.held(name)}
    found += [path for path, name in kept if name in idle and path.is_file()]
    return sorted(set(found))
