"""From a record back to the model that it tells of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlbench.config import BASELINE
from mtlbench.contracts import Dataset, Task
from mtlbench.data.auxiliary import with_auxiliary
from mtlbench.data.folder import data_folder
from mtlbench.errors import MtlbenchError
from mtlbench.experiment import CORE, code_digest
from mtlbench.heads import HeadChoice
from mtlbench.inspection.learning import Pair, Trial
from mtlbench.registry import Choice, Registry
from mtlbench.results import Comparison, Record, Store, compare
from mtlbench.spec import format_spec
from mtlbench.training import checkpoint as checkpoints
from mtlbench.training.model import MultiTaskModel, Run, build, choose_tasks

_ID = re.compile(r"[0-9a-f]{1,16}(\.\d+)?")


@dataclass(frozen=True)
class Subject:
    """A run that is looked at: its record, what it was run on, and the selected model in eval mode.

    notices: what the user should know, such as that the code has changed since.
    """

    record: Record
    dataset: Dataset
    tasks: tuple[Task, ...]
    model: MultiTaskModel
    notices: tuple[str, ...]


def find_record(run: str, results: Path) -> tuple[Record, Path]:
    """Return the record that ``run`` names, and the folder of the store that it lies in.

    run: a run id or the beginning of one that fits only one run, with ``.2`` for its second attempt (the
    latest is taken else); or the path of a record.
    """
    path = Path(run)
    if path.suffix == ".json" or path.is_file():
        if not path.is_file():
            raise MtlbenchError(f"there is no record '{path}'")
        text = path.read_text(encoding="utf-8", errors="replace")
        return Record.loads(text, str(path)), path.resolve().parents[2]
    if not _ID.fullmatch(run):
        raise MtlbenchError(
            f"'{run}' is neither a record's path nor (the beginning of) a run id, which is made of 0-9 and"
            " a-f"
        )
    beginning, _, attempt = run.partition(".")
    found: dict[str, Record] = {}
    for record in Store(results).records():
        if record.run_id.startswith(beginning) and attempt in ("", str(record.values["attempt"])):
            kept = found.get(record.run_id)
            if kept is None or record.values["attempt"] > kept.values["attempt"]:
                found[record.run_id] = record
    if not found:
        raise MtlbenchError(
            f"no run in '{results}' begins with '{run}'; 'mtlbench run' prints the ids, --results names"
            " another folder"
        )
    if len(found) > 1:
        some = ", ".join(sorted(found)[:4])
        raise MtlbenchError(
            f"'{run}' is the beginning of {len(found)} runs ({some}{', …' if len(found) > 4 else ''}):"
            " give more of it"
        )
    return next(iter(found.values())), results


def comparison(record: Record, store: Store) -> Comparison:
    """Compare a run with those of its baselines that the store holds."""
    return compare(record, _baselines(record, store))


def seeds(record: Record, store: Store) -> list[Pair]:
    """Return the run with each seed whose record the store holds, its own first, with its baselines.

    A run with another seed is one whose record says the same of everything else: spec, protocol, data, code.
    """
    asked = _but_the_seed(record)
    ids = {
        found.values["spec"]["seed"]: found.run_id
        for found in store.records()
        if found.folder == record.folder and _but_the_seed(found) == asked
    }
    others = [store.find(record.folder, name) for _, name in sorted(ids.items()) if name != record.run_id]
    return [
        Pair(
            run.values["spec"]["seed"],
            Trial(run, store.cost(run)),
            {task: Trial(base, store.cost(base)) for task, base in _baselines(run, store).items()},
        )
        for run in (record, *others)
        if run is not None
    ]


def _but_the_seed(record: Record) -> dict[str, Any]:
    values = record.values
    spec = {key: value for key, value in values["spec"].items() if key != "seed"}
    return {"spec": spec, **{key: values[key] for key in ("protocol", "data", "code")}}


def _baselines(record: Record, store: Store) -> dict[str, Record]:
    """Return those of a run's baselines that the store holds, by task."""
    folder = (record.folder[0], "+".join(BASELINE))
    found = {task: store.find(folder, run_id) for task, run_id in record.values["baselines"].items()}
    return {task: base for task, base in found.items() if base is not None}


def missing_model(record: Record, store: Store) -> str | None:
    """Return why there is no model to look at, and what to do; None where there is one."""
    if record.status != "ok":
        return f"run {record.run_id} {record.status} ({record.values['reason']}), so it selected no model"
    if not store.model(record).exists():
        return (
            f"run {record.run_id} was kept without its model; the 'mtlbench run' that made it, with"
            " --save-model added, trains it again and keeps the model"
        )
    return None


def rebuild(record: Record, store: Store, registry: Registry, data_dir: Path | None) -> Subject:
    """Return the selected model of a run, on the data that it was run on.

    Raises `MtlbenchError` where plugins or data are missing, and where the data is not that of the run.
    """
    values, spec = record.values, record.values["spec"]
    file = store.model(record)
    data = _choose(registry, "datasets", spec["dataset"])
    architecture = _choose(registry, "architectures", spec["architecture"])
    encoders = _by_task(spec["encoder"], spec["tasks"])
    auxiliary = tuple(_choose(registry, "auxiliary", named) for named in spec.get("auxiliary", ()))
    run = Run(
        architecture,
        _choose(registry, "weightings", spec["weighting"]),
        {task: _choose(registry, "encoders", named) for task, named in encoders.items()},
        {task: HeadChoice(head["name"], head["parameters"]) for task, head in spec["heads"].items()},
        data,
        tuple(spec["tasks"]),
        spec["grad"],
        spec["scale"],
        spec["seed"],
        values["protocol"] | {"compile": False},  # for a look or two it is not worth its time
        registry,
        auxiliary=auxiliary,
    )
    dataset: Dataset = with_auxiliary(
        data.build(data_dir=data_folder(data_dir)), [choice.build() for choice in auxiliary]
    )
    fingerprint = dataset.fingerprint()
    if fingerprint != values["data"]["fingerprint"]:
        raise MtlbenchError(
            f"run {record.run_id} was made on '{values['data']['title']}' with fingerprint"
            f" {values['data']['fingerprint']}, and what is here is '{dataset.title}' with {fingerprint}:"
            " name the folder of its data with --data-dir"
        )
    notices = tuple(_changes(values["code"], run))
    model, _ = build(run, dataset)
    with checkpoints.readable(file, "delete it, and run again with --save-model"):
        model.load_state_dict(checkpoints.load(file)["model"])
    return Subject(record, dataset, choose_tasks(dataset, run.tasks), model.eval(), notices)


def _choose(registry: Registry, kind: str, named: Mapping[str, Any]) -> Choice:
    """Return the plugin that a record names; an encoder without the file that it once started from."""
    values = named["parameters"]
    if kind == "encoders":
        values = registry.get(kind, named["name"]).load().restored(values)
    return registry.choose(kind, format_spec(named["name"], values))


def _by_task(encoder: Mapping[str, Any], tasks: list[str]) -> dict[str, Mapping[str, Any]]:
    found = encoder.get("by_task")
    return {task: encoder if found is None else found[task] for task in tasks}


def _changes(code: Mapping[str, Any], run: Run) -> list[str]:
    """Say which code is no longer what the run was made with; the weighting's makes no difference here."""
    encoders = _by_task(code["encoder"], list(run.tasks))
    then = {
        "the core": code["core"],
        f"architecture '{run.architecture}'": code["architecture"]["source"],
        f"dataset '{run.dataset}'": code["dataset"]["source"],
    } | {f"encoder '{run.encoders[task]}'": found["source"] for task, found in encoders.items()}
    then |= {
        f"auxiliary task '{choice}'": found["source"]
        for choice, found in zip(run.auxiliary, code.get("auxiliary", ()), strict=True)
    }
    now = {
        "the core": code_digest(*CORE),
        f"architecture '{run.architecture}'": code_digest(run.architecture.plugin.module),
        f"dataset '{run.dataset}'": code_digest(run.dataset.plugin.module),
    } | {f"encoder '{choice}'": code_digest(choice.plugin.module) for choice in run.encoders.values()}
    now |= {f"auxiliary task '{choice}'": code_digest(choice.plugin.module) for choice in run.auxiliary}
    changed = [name for name, digest in now.items() if then[name] != digest]
    if not changed:
        return []
    return [
        f"the code of {', '.join(changed)} has changed since the run was made: pictures show what today's"
        " code makes of its weights"
    ]
