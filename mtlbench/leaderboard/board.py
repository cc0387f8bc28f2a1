"""From records to tables: what stands in one table, what is one row, and what may be said of it.

Nothing here depends on the order of files, on dates or on the machine: a board is a function of the records.
"""

from __future__ import annotations

import gc
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mtlbench.config import BASELINE, RunConfig
from mtlbench.errors import MtlbenchError, did_you_mean
from mtlbench.results import Comparison, Cost, Record, Store, Summary, canonical, compare, summarise
from mtlbench.results.delta import mean
from mtlbench.results.statistics import Ranking, Versus, mean_ranks, ranking, versus
from mtlbench.spec import format_spec

Key = tuple[str, str]
"""(task, metric)"""

REFERENCE = (RunConfig.arch, RunConfig.weight)
"""What other rows are tested against unless another is named: what the command runs by default."""


@dataclass(frozen=True)
class Column:
    """One metric of one task. Scores of auxiliary tasks are shown and enter nothing."""

    task: str
    metric: str
    unit: str
    higher_is_better: bool
    auxiliary: bool

    @property
    def key(self) -> Key:
        """What cells are found by."""
        return self.task, self.metric


@dataclass(frozen=True)
class Seed:
    """One run of a row: its record (of a baseline row: one a task), its comparison and its cost."""

    seed: int
    records: tuple[Record, ...]
    comparison: Comparison | None
    seconds: float | None
    peak_mb: float | None
    device: str | None

    @property
    def failure(self) -> str | None:
        """Why there is no score: the status and its reason; None where all is well."""
        bad = [r for r in self.records if r.status != "ok"]
        return f"{bad[0].status}: {bad[0].values['reason']}" if bad else None

    @property
    def delta(self) -> float | None:
        """Δ-MTL of this seed, in %."""
        return None if self.comparison is None else self.comparison.delta

    def score(self, key: Key) -> float | None:
        """Return the test score of a metric."""
        found = [
            r.values["metrics"][key[0]].get(key[1]) for r in self.records if key[0] in r.values["metrics"]
        ]
        return found[0] if found else None


@dataclass
class Row:
    """One configuration over its seeds.

    kind: ``run``, ``baseline`` (single-task, Δ-MTL 0 by definition) or ``published``. delta: over the seeds
    where it is defined; ``missing`` says of each other seed why it is not. tied: whether a difference to the
    best row could not be shown (None: too few seeds to tell). rank: mean rank over the scored metrics, None
    for a row with a gap. front: on the Pareto front of Δ-MTL against training time. source: of published
    numbers.
    """

    kind: str
    label: str
    spec: Mapping[str, Any]
    seeds: tuple[Seed, ...] = ()
    cells: dict[Key, Summary] = field(default_factory=dict)
    delta: Summary | None = None
    missing: tuple[str, ...] = ()
    seconds: float | None = None
    parameters: int | None = None
    versus: Versus | None = None
    best: bool = False
    tied: bool | None = None
    rank: float | None = None
    front: bool = False
    source: str = ""

    @property
    def deltas(self) -> dict[int, float]:
        """Δ-MTL by seed, where it is defined."""
        return {s.seed: s.delta for s in self.seeds if s.delta is not None}


@dataclass
class Table:
    """Rows that may be compared: one comparability key, one list of tasks."""

    dataset: str
    title: str
    key: str
    tasks: tuple[str, ...]
    protocol: Mapping[str, Any]
    columns: tuple[Column, ...]
    rows: list[Row]
    reference: str | None = None
    devices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A short name that is unique on a board and fit for a link."""
        digest = hashlib.sha256(canonical([self.key, self.tasks]).encode()).hexdigest()
        return f"{self.dataset}-{digest[:8]}"


@dataclass(frozen=True)
class Board:
    """All tables, a hash of the records and costs that they were made from, and the ranking over datasets."""

    tables: tuple[Table, ...]
    digest: str
    records: int
    ranking: Ranking | None


@contextmanager
def uncollected() -> Iterator[None]:
    """Pause Python's search for cycles of garbage.

    Tables make none, and looking for some among the millions of objects of 10,000 records takes as long as
    all the rest.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@uncollected()
def build(store: Store, reference: str | None = None, published: Iterable[tuple[str, Row]] = ()) -> Board:
    """Make the board of a store.

    reference: label of the row that the others are tested against, in every table that has it (None: the
    first row of `REFERENCE`). published: (dataset, row)
    pairs to show beside, marked and in no statistic.
    """
    latest: dict[str, Record] = {}
    costs: dict[str, Cost | None] = {}
    digests = []
    for path in store.paths():
        text, beside = store.texts(path)
        record, cost = Record.loads(text, str(path)), None if beside is None else Cost.loads(beside)
        attempt = int(record.values["attempt"])
        digests.append((record.run_id, attempt, hashlib.sha256(f"{text}{cost}".encode()).digest()))
        before = latest.get(record.run_id)
        if before is None or before.values["attempt"] < attempt:
            latest[record.run_id] = record  # a later attempt stands for the run, as it does for the command
            costs[record.run_id] = cost
    digest = hashlib.sha256(b"".join(found for *_, found in sorted(digests))).hexdigest()[:16]
    latest = dict(sorted(latest.items()))
    named = {name for record in latest.values() for name in record.values["baselines"].values()}
    groups: dict[tuple[str, str, tuple[str, ...]], list[Record]] = {}
    for record in latest.values():
        if record.run_id not in named:
            values = record.values
            where = (
                values["spec"]["dataset"]["name"],
                values["comparability"],
                tuple(values["spec"]["tasks"]),
            )
            groups.setdefault(where, []).append(record)
    tables = [_table(where, found, latest, costs, reference) for where, found in sorted(groups.items())]
    known = sorted({row.label for table in tables for row in table.rows if row.kind == "run"})
    if reference is not None and reference not in known:
        raise MtlbenchError(
            f"no row '{reference}' to compare with.{did_you_mean(reference, known)} Rows: {', '.join(known)}"
        )
    published = list(published)
    for table in tables:
        table.rows += [row for dataset, row in published if dataset == table.dataset]
    return Board(tuple(tables), digest, len(digests), _ranking(tables))


def _table(
    where: tuple[str, str, tuple[str, ...]],
    records: Sequence[Record],
    latest: Mapping[str, Record],
    costs: Mapping[str, Cost | None],
    reference: str | None,
) -> Table:
    dataset, key, tasks = where
    first = records[0].values
    columns = tuple(
        Column(task, name, found["unit"], found["higher_is_better"], found["auxiliary"])
        for task in tasks
        for name, found in first["data"]["metrics"][task].items()
    )
    by_config: dict[str, list[Record]] = {}
    for record in records:
        by_config.setdefault(_configuration(record), []).append(record)
    groups = [by_config[config] for config in sorted(by_config)]
    labels = _labels([group[0].values for group in groups])
    rows = [
        _row("run", label, [_seed(record, latest, costs) for record in group], columns)
        for label, group in zip(labels, groups, strict=True)
    ]
    rows += _baselines(records, latest, costs, columns)
    _judge(rows, columns, reference)
    rows.sort(key=lambda row: (-row.delta.mean if row.delta else math.inf, row.label, canonical(row.spec)))
    devices = sorted({seed.device for row in rows for seed in row.seeds if seed.device})
    return Table(
        dataset,
        first["data"]["title"],
        key,
        tasks,
        first["protocol"],
        columns,
        rows,
        next((row.label for row in rows if row.kind == "run" and _is_reference(row, reference)), None),
        tuple(devices),
    )


def _configuration(record: Record) -> str:
    """What makes one row: all that was asked for but the seed, and the code that did it."""
    spec = {name: value for name, value in record.values["spec"].items() if name != "seed"}
    return canonical([spec, record.values["code"]])


def spell(value: Any) -> str:
    """Write a part of a spec as the command line takes it."""
    if isinstance(value, Mapping):
        if value.keys() == {"name", "parameters"}:
            return format_spec(value["name"], value["parameters"])
        value = value.get("by_task", value)
        return ",".join(f"{name}={spell(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return ",".join(spell(part) for part in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


_NAMED = ("architecture", "weighting")
_UNNAMED = {*_NAMED, "dataset", "tasks", "seed", "tuning"}
"""What a label starts with, and what it leaves out besides, since the table's title says it."""


def _labels(values: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name rows as briefly as tells them apart: a parameter is named only where it varies."""
    specs = [found["spec"] for found in values]
    seen: dict[tuple[str, ...], set[str]] = {}
    for spec in specs:
        for part in _NAMED:
            for name, value in spec[part]["parameters"].items():
                seen.setdefault((part, spec[part]["name"], name), set()).add(canonical(value))
        for name in spec.keys() - _UNNAMED:
            seen.setdefault((name,), set()).add(canonical(spec[name]))
        for name, value in _tuning(spec).items():
            seen.setdefault(("tuning", name), set()).add(canonical(value))
    labels = []
    for spec in specs:
        pair = []
        for part in _NAMED:
            plugin = spec[part]["name"]
            parameters = spec[part]["parameters"].items()
            searched = (
                _tuning(spec).get("over", ()) if part == "weighting" else ()
            )  # it is no choice of anyone
            shown = {k: v for k, v in parameters if len(seen[part, plugin, k]) > 1 and k not in searched}
            pair.append(format_spec(plugin, shown))
        if tuning := _tuning(spec):
            words = ["tuned", f"{tuning['trials']} trials"]
            words += [f"{k} {spell(tuning[k])}" for k in ("over", "seed") if len(seen["tuning", k]) > 1]
            pair[-1] += f" ({', '.join(words)})"
        others = [
            f"{name} {spell(value)}"
            for name, value in spec.items()
            if name not in _UNNAMED and len(seen[(name,)]) > 1
        ]
        labels.append(", ".join(["+".join(pair), *others]))
    doubled = {label for label, times in Counter(labels).items() if times > 1}
    return [
        f"{label}, code {hashlib.sha256(canonical(found['code']).encode()).hexdigest()[:6]}"
        if label in doubled
        else label
        for label, found in zip(labels, values, strict=True)
    ]


def _tuning(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the parameters of the search behind a row; empty where there was none."""
    found: Mapping[str, Any] = spec.get("tuning", {}).get("parameters", {})
    return found


def _seed(record: Record, latest: Mapping[str, Record], costs: Mapping[str, Cost | None]) -> Seed:
    baselines = {task: latest[name] for task, name in record.values["baselines"].items() if name in latest}
    cost = costs[record.run_id]
    return Seed(
        int(record.values["spec"]["seed"]),
        (record,),
        compare(record, baselines),
        cost.seconds if cost else None,
        cost.peak_mb if cost else None,
        cost.device if cost else None,
    )


def _baselines(
    records: Sequence[Record],
    latest: Mapping[str, Record],
    costs: Mapping[str, Cost | None],
    columns: Sequence[Column],
) -> list[Row]:
    """Return a row for each set of single-task runs that the table's runs are measured against."""
    sets: dict[str, dict[int, dict[str, Record]]] = {}
    for record in records:
        found = {task: latest[name] for task, name in record.values["baselines"].items() if name in latest}
        for task, base in found.items():
            spec = {k: v for k, v in base.values["spec"].items() if k not in ("seed", "tasks")}
            by_seed = sets.setdefault(canonical([spec, base.values["code"]]), {})
            by_seed.setdefault(int(base.values["spec"]["seed"]), {})[task] = base
    firsts = [next(iter(next(iter(sets[name].values())).values())).values for name in sorted(sets)]
    labels = [label.replace("+".join(BASELINE), "single-task", 1) for label in _labels(firsts)]
    rows = []
    for label, name in zip(labels, sorted(sets), strict=True):
        seeds = []
        for seed, found in sorted(sets[name].items()):
            paid = [costs[base.run_id] for base in found.values()]
            known = [cost for cost in paid if cost is not None]
            whole = len(known) == len(paid)
            seeds.append(
                Seed(
                    seed,
                    tuple(found[task] for task in sorted(found)),
                    None,
                    math.fsum(c.seconds for c in known) if whole else None,
                    max(c.peak_mb for c in known) if whole else None,
                    known[0].device if whole else None,
                )
            )
        rows.append(_row("baseline", label, seeds, columns))
    return rows


def _row(kind: str, label: str, seeds: Iterable[Seed], columns: Sequence[Column]) -> Row:
    runs = tuple(sorted(seeds, key=lambda s: s.seed))
    spec = {name: value for name, value in runs[0].records[0].values["spec"].items() if name != "seed"}
    row = Row(kind, label, spec, runs)
    for column in columns:
        scores = [score for score in (seed.score(column.key) for seed in runs) if score is not None]
        if scores:
            row.cells[column.key] = summarise(scores)
    if kind == "baseline":
        row.delta = Summary(0.0, None, len(runs))
    elif row.deltas:
        row.delta = summarise([row.deltas[seed] for seed in sorted(row.deltas)])
    row.missing = tuple(
        f"seed {seed.seed}: {why}" for seed in runs if (why := seed.failure or _undefined(seed)) is not None
    )
    ended = [seed for seed in runs if seed.failure is None]  # others have stopped halfway
    times = [seed.seconds for seed in ended if seed.seconds is not None]
    row.seconds = mean(times) if times and len(times) == len(ended) else None
    # A run whose process died has told none.
    row.parameters = max(sum(int(r.values["parameters"]["total"]) for r in seed.records) for seed in runs)
    return row


def _undefined(seed: Seed) -> str | None:
    if seed.comparison is None or seed.comparison.delta is not None:
        return None
    reasons = sorted({g.why for g in seed.comparison.gains if g.why and not g.auxiliary})
    return f"Δ-MTL undefined: {'; '.join(reasons)}" if reasons else "no scored task"


def _is_reference(row: Row, reference: str | None) -> bool:
    if reference is not None:
        return row.label == reference
    names = (row.spec["architecture"]["name"], row.spec["weighting"]["name"])
    return names == REFERENCE and "tuning" not in row.spec


def _judge(rows: list[Row], columns: Sequence[Column], reference: str | None) -> None:
    """Fill in what compares rows: the tests, the ties, the ranks and the Pareto front."""
    runs = [row for row in rows if row.kind == "run" and row.delta is not None]
    if runs:
        scores = [row.deltas for row in runs]
        anchor = next((i for i, row in enumerate(runs) if _is_reference(row, reference)), None)
        if anchor is not None:
            for row, found in zip(runs, versus(scores, anchor), strict=True):
                row.versus = found
        summarised = [row.delta.mean if row.delta else -math.inf for row in runs]
        top = max(range(len(runs)), key=lambda i: (summarised[i], -i))
        runs[top].best = True
        for row, found in zip(runs, versus(scores, top), strict=True):
            row.tied = None if found is None or found.different is None else not found.different
    scored = [column for column in columns if not column.auxiliary]
    whole = [row for row in rows if all(c.key in row.cells for c in scored) and not row.missing]
    if len(whole) > 1 and scored:
        table = [[row.cells[c.key].mean for c in scored] for row in whole]
        for row, rank in zip(whole, mean_ranks(table, [c.higher_is_better for c in scored]), strict=True):
            row.rank = rank
    # Times of different machines do not compare: then there is no front.
    placed = [row for row in rows if row.delta is not None and row.seconds is not None]
    if len({seed.device for row in placed for seed in row.seeds}) == 1:
        best = -math.inf
        for row in sorted(placed, key=lambda r: (r.seconds or 0.0, -(r.delta.mean if r.delta else 0.0))):
            if row.delta is not None and row.delta.mean > best:
                row.front, best = True, row.delta.mean


def _ranking(tables: Sequence[Table]) -> Ranking | None:
    """Rank rows of equal labels over datasets; a dataset with several tables counts once, by its largest."""
    largest: dict[str, Table] = {}
    for table in tables:
        known = largest.get(table.dataset)
        if known is None or len(table.rows) > len(known.rows):
            largest[table.dataset] = table
    scores: dict[str, dict[str, float]] = {}
    for dataset, table in sorted(largest.items()):
        for row in table.rows:
            if row.kind == "run" and row.delta is not None:
                scores.setdefault(row.label, {})[dataset] = row.delta.mean
    everywhere = {label: found for label, found in scores.items() if len(found) == len(largest)}
    return ranking(everywhere)
