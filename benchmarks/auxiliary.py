"""The table of the auxiliary-task study: which tasks, trained beside it, help the target task?

    python benchmarks/auxiliary.py RESULTS

reads the records that benchmarks/recipes/pets-auxiliary.toml left and prints a table in Markdown: for each
list of auxiliary tasks the target's test IoU beside that of the same seed's single-task run, and Δ-MTL, which
only the target enters; means with 95 % intervals over seeds.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mtlbench.results import Comparison, Store, compare, summarise

Row = dict[int, Comparison]
"""By seed, a run beside its baseline."""


def rows(store: Store) -> dict[tuple[str, str, str], Row]:
    """Return runs with one target task by auxiliary tasks, method and the title of the data."""
    records = {record.run_id: record for record in store.records() if record.status == "ok"}
    found: dict[tuple[str, str, str], Row] = {}
    for record in records.values():
        spec, metrics = record.values["spec"], record.values["data"]["metrics"]
        helping = [t for t in spec["tasks"] if all(m["auxiliary"] for m in metrics[t].values())]
        baselines = {t: records[name] for t, name in record.values["baselines"].items() if name in records}
        if len(spec["tasks"]) - len(helping) == 1 and helping and baselines:
            weights = spec["weighting"]["parameters"].get("weights", "")
            method = f"{spec['architecture']['name']}+{spec['weighting']['name']} {weights}".rstrip()
            key = (", ".join(helping), method, record.values["data"]["title"])
            found.setdefault(key, {})[spec["seed"]] = compare(record, baselines)
    return found


def table(found: dict[tuple[str, str, str], Row]) -> list[str]:
    """Return the lines of the table."""
    lines = [
        "| beside segmentation | method | IoU together | IoU alone | Δ-MTL | seeds |",
        "| --- " * 6 + "|",
    ]
    for (helping, method, _), row in sorted(found.items()):
        seeds = sorted(row)
        pairs = [next(g for g in row[s].gains if g.metric == "iou" and not g.auxiliary) for s in seeds]
        both = [[pair.value or 0.0 for pair in pairs], [pair.baseline or 0.0 for pair in pairs]]
        cells = [_text(values, 4) for values in both]
        deltas = [row[seed].delta for seed in seeds]
        known = [delta for delta in deltas if delta is not None]
        cells.append(_text(known, 1, "+") + " %" if len(known) == len(deltas) else "")
        lines.append(f"| {helping} | `{method}` | {' | '.join(cells)} | {len(seeds)} |")
    return lines


def _text(values: list[float], digits: int, sign: str = "") -> str:
    found = summarise(values)
    half = "" if found.half_width is None else f" ± {found.half_width:.{digits}f}"
    return f"{found.mean:{sign}.{digits}f}{half}"


def main() -> None:
    """Print the table of a results folder."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        raise SystemExit("usage: python benchmarks/auxiliary.py RESULTS, a folder of records")
    found = rows(Store(Path(sys.argv[1])))
    if not found:
        raise SystemExit(
            f"{sys.argv[1]} holds no run of a target task with auxiliary ones beside its baseline"
        )
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
