"""The table of the relatedness study: does a higher correlation of the tasks lower the loss?

    python benchmarks/relatedness.py RESULTS

reads the records that benchmarks/recipes/relatedness.toml left and prints a table in Markdown: for each
architecture the test error (MSE, mean over both tasks) by correlation, and the paired difference between the
highest and the lowest one over the draws of the data that both have.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from scipy.stats import ttest_1samp

from mtlbench.results import Record, Store, Summary, summarise
from mtlbench.spec import format_spec

Errors = dict[str, dict[float, dict[int, float]]]
"""By architecture and encoder, then by correlation, then by draw."""


def errors(records: list[Record]) -> Errors:
    """Return the test error of every run on ``relatedness``, mean over its two tasks."""
    found: Errors = {}
    for record in records:
        spec = record.values["spec"]
        if spec["dataset"]["name"] != "relatedness" or record.status != "ok" or len(spec["tasks"]) < 2:
            continue
        parts = (spec["architecture"], spec["encoder"])
        row = " on ".join(format_spec(part["name"], _told(part["parameters"])) for part in parts)
        data = spec["dataset"]["parameters"]
        scores = [record.values["metrics"][task]["mse"] for task in spec["tasks"]]
        found.setdefault(row, {}).setdefault(data["p"], {})[data["seed"]] = sum(scores) / len(scores)
    return found


def _told(parameters: Mapping[str, object]) -> dict[str, object]:
    """Return the parameters that the recipe sets."""
    return {name: parameters[name] for name in ("experts", "hidden") if name in parameters}


def table(found: Errors) -> list[str]:
    """Return the lines of the table."""
    correlations = sorted({p for by_p in found.values() for p in by_p})
    low, high = correlations[0], correlations[-1]
    head = [f"p = {p:g}" for p in correlations]
    lines = [
        f"| test MSE | {' | '.join(head)} | {high:g} less {low:g} | paired t test |",
        f"| --- {'| --- ' * (len(head) + 2)}|",
    ]
    for row, by_p in sorted(found.items()):
        cells = [_text(summarise(list(by_p[p].values()))) if p in by_p else "" for p in correlations]
        draws = sorted(by_p.get(low, {}).keys() & by_p.get(high, {}).keys())
        differences = [by_p[high][draw] - by_p[low][draw] for draw in draws]
        told = ["", ""]
        if len(draws) > 1:
            test = ttest_1samp(differences, 0.0)
            told = [_text(summarise(differences), "+"), f"p = {test.pvalue:.2g}, {len(draws)} draws"]
        lines.append(f"| `{row}` | {' | '.join([*cells, *told])} |")
    return lines


def _text(summary: Summary, sign: str = "") -> str:
    half = "" if summary.half_width is None else f" ± {summary.half_width:.3f}"
    return f"{summary.mean:{sign}.3f}{half}"


def main() -> None:
    """Print the table of a results folder."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        raise SystemExit("usage: python benchmarks/relatedness.py RESULTS, a folder of records")
    found = errors(list(Store(Path(sys.argv[1])).records()))
    if not found:
        raise SystemExit(f"{sys.argv[1]} holds no finished run on relatedness with both tasks")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
