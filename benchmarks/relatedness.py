"""The table of the relatedness study: does a higher correlation of the tasks lower the loss?

    python benchmarks/relatedness.py RESULTS

reads the records that benchmarks/recipes/relatedness.toml left and prints a table in Markdown: for each
architecture and number of training samples the test error (MSE, mean over both tasks) by correlation, and the
error at the highest correlation over that at the lowest. Draws of the data differ in difficulty by far more
than correlations do, so they are paired, and compared by ratios: the geometric mean, its 95 % interval and a
paired t test of the logarithms.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path

from scipy.stats import ttest_1samp

from mtlbench.results import Record, Store, Summary, summarise
from mtlbench.spec import format_spec

Errors = dict[tuple[str, int], dict[float, dict[int, float]]]
"""By architecture on encoder and number of samples, then by correlation, then by draw."""


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
        by_p = found.setdefault((row, data["count"]), {})
        by_p.setdefault(data["p"], {})[data["seed"]] = sum(scores) / len(scores)
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
        f"| test MSE | samples | {' | '.join(head)} | {high:g} over {low:g} | paired t test |",
        f"| --- {'| --- ' * (len(head) + 3)}|",
    ]
    for (row, count), by_p in sorted(found.items()):
        cells = [_text(summarise(list(by_p[p].values()))) if p in by_p else "" for p in correlations]
        draws = sorted(by_p.get(low, {}).keys() & by_p.get(high, {}).keys())
        told = ["", ""]
        if len(draws) > 1:
            logs = [math.log(by_p[high][draw] / by_p[low][draw]) for draw in draws]
            mean, half = summarise(logs).mean, summarise(logs).half_width or 0.0
            ends = f"{math.exp(mean - half):.2f} to {math.exp(mean + half):.2f}"
            told = [
                f"{math.exp(mean):.2f} ({ends})",
                f"p = {ttest_1samp(logs, 0.0).pvalue:.2g}, {len(draws)} draws",
            ]
        lines.append(f"| `{row}` | {count:,} | {' | '.join([*cells, *told])} |")
    return lines


def _text(summary: Summary) -> str:
    half = "" if summary.half_width is None else f" ± {summary.half_width:.2f}"
    return f"{summary.mean:.2f}{half}"


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
