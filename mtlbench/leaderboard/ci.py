"""What a repository of records checks before it takes a change: records, history, tables, one run again."""

from __future__ import annotations

import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtlbench.config import RunConfig
from mtlbench.data.folder import data_folder
from mtlbench.errors import MtlbenchError
from mtlbench.experiment import Experiment, Watcher
from mtlbench.leaderboard.board import spell
from mtlbench.leaderboard.formats import settings
from mtlbench.registry import Registry
from mtlbench.results import Record, Store

TOLERANCE = 0.05
"""How far, relative to the record, a score may come out on a machine of another kind."""


class Elsewhere(MtlbenchError):
    """The data of a record is not on this machine."""


def modified(root: Path, base: str) -> list[str]:
    """Return the records under ``root`` that were changed, renamed or removed since the git revision.

    Records are only ever added. Raises `MtlbenchError` where git cannot tell.
    """
    command = [
        "git",
        "-C",
        str(root),
        "diff",
        "--name-only",
        "--no-renames",
        "--diff-filter=DMT",
        base,
        "--",
        ".",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["git failed"])[0]
        raise MtlbenchError(f"git can't compare '{root}' with '{base}': {reason}")
    return [line for line in done.stdout.splitlines() if line.endswith(".json")]


def picks(store: Store, limit: float, seed: int) -> Iterator[Record]:
    """Yield the good records that cost at most ``limit`` seconds, in an order that is drawn with ``seed``."""
    small = []
    for record in store.records():
        cost = store.cost(record)
        first = record.values["attempt"] == 1
        if record.status == "ok" and first and cost is not None and cost.seconds <= limit:
            small.append(record)
    random.Random(seed).shuffle(small)
    yield from small


def rerun(
    record: Record,
    data_dir: Path | None,
    plugins: Sequence[Path],
    watcher: Watcher,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[str, list[str]]:
    """Train the record's config again and return (what came of it, the scores that came out otherwise).

    With the same code, libraries and kind of processor scores must be equal, else within `TOLERANCE`. Raises
    `Elsewhere` where its data is not here.
    """
    values = record.values
    asked = settings(values["spec"], values["protocol"])
    flags = {k: v if isinstance(v, (bool, int, float)) else spell(v) for k, v in asked.items()}
    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            RunConfig.resolve(None, {**flags, "seeds": str(values["spec"]["seed"])}),
            results=Path(folder),
            data_dir=data_dir,
            plugin=tuple(plugins),
            baseline=False,
            save_model=False,
        )
        registry = Registry(config.plugin)
        _find_data(registry, config, record)
        experiment = Experiment(config, registry)
        again = experiment.execute(watcher, stopped)[0].run.record.values
    same = again["run_id"] == values["run_id"] and again["env"] == values["env"]
    if again["data"]["fingerprint"] != values["data"]["fingerprint"]:
        return "its data is not what it was", [f"data {again['data']['fingerprint']}"]
    off = [
        f"{task} {metric}: {score:.6g} in the record, {_score(again, task, metric)} now"
        for task, scores in values["metrics"].items()
        for metric, score in scores.items()
        if score is not None and not _near(score, _score(again, task, metric), 0.0 if same else TOLERANCE)
    ]
    exact = (
        "equal to the last bit" if same else f"within {TOLERANCE:.0%} (other code, libraries or processor)"
    )
    return exact if not off else f"not {exact}", off


def _find_data(registry: Registry, config: RunConfig, record: Record) -> None:
    """Raise `Elsewhere` unless the record's data is here, be it as it was or not."""
    choice, title = registry.choose("datasets", config.data), record.values["data"]["title"]
    try:
        found = choice.build(data_dir=data_folder(config.data_dir), memory=int(config.memory * 2**30)).title
    except MtlbenchError as error:
        raise Elsewhere(str(error)) from None
    if title != found and not title.startswith(f"{found} with "):  # auxiliary tasks
        raise Elsewhere(f"'{title}' is not prepared, and '{found}' is something else")


def _score(values: Any, task: str, metric: str) -> float | None:
    found: float | None = values["metrics"].get(task, {}).get(metric)
    return found


def _near(expected: float, found: float | None, tolerance: float) -> bool:
    return found is not None and abs(found - expected) <= tolerance * max(abs(expected), 1e-3)
