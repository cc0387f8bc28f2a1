"""The table that answers a run: each metric beside its baseline, and Δ-MTL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mtlbench.experiment import Experiment, Result, Trained
from mtlbench.results import Cost, Gain, summarise
from mtlbench.spec import format_by_task

MISSING = "–"


def render(experiment: Experiment, results: Sequence[Result]) -> RenderableType:
    """Return the table of one configuration over its seeds, with what it cost, for a rich console."""
    with_baseline = any(result.baselines for result in results)
    parts: list[RenderableType] = ["", _headline(experiment, results), "", _scores(results, with_baseline)]
    if with_baseline:
        parts += ["", _verdict(results)]
    parts += ["", _costs(results, with_baseline), "", *_failures(results), _where(experiment, results)]
    return Padding(Group(*parts), (0, 0, 0, 1), expand=False)


def _headline(experiment: Experiment, results: Sequence[Result]) -> Text:
    run, values = experiment.run, results[0].run.record.values
    epochs = values["protocol"]["epochs"]
    seeds = ", ".join(str(result.seed) for result in results)
    title = Text(f"{run.architecture} + {run.weighting}", style="bold")
    title.append(" on ", style="not bold").append(experiment.dataset.title)
    details = [f"encoder{'' if run.encoder else 's'} {run.encoder_label}"]
    if run.heads:
        details.append(f"head{'s' if len(run.heads) > 1 else ''} {format_by_task(run.heads)}")
    details += [f"{epochs} epochs", f"seed{'s' if len(results) > 1 else ''} {seeds}"]
    if run.grad != "parameters":
        details.append(f"gradients by {run.grad}")
    return title.append("\n" + " · ".join(details), style="not bold dim")


def _scores(results: Sequence[Result], with_baseline: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("task")
    table.add_column("metric")
    table.add_column("together" if with_baseline else "test", justify="right")
    if with_baseline:
        table.add_column("apart", justify="right")
        table.add_column("gain", justify="right")
    previous = None
    for row in zip(*(result.comparison.gains for result in results), strict=True):
        gain = row[0]
        task = "" if gain.task == previous else gain.task + (" (auxiliary)" if gain.auxiliary else "")
        previous = gain.task
        arrow = "↑" if gain.higher_is_better else "↓"
        unit = "" if gain.unit == "1" else f" [{gain.unit}]"
        cells: list[str | Text] = [task, f"{gain.metric} {arrow}{unit}", _spread([g.value for g in row])]
        if with_baseline:
            cells += [_spread([g.baseline for g in row]), _percent(row)]
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
    return table


def _verdict(results: Sequence[Result]) -> Text:
    deltas = [result.comparison.delta for result in results]
    flat = [result.comparison.delta_flat for result in results]
    known = [d for d in deltas if d is not None]
    if len(known) < len(deltas):
        reasons = {g.why for r in results for g in r.comparison.gains if g.why and not g.auxiliary}
        return Text.assemble(("Δ-MTL", "bold"), f"  undefined: {'; '.join(sorted(reasons))}")
    number = _signed(known)
    text = Text.assemble(("Δ-MTL", "bold"), "  ", (number, f"bold {_colour(known)}"), "  mean over tasks")
    text.append(f"  ({_signed([d for d in flat if d is not None])} mean over metrics)", style="dim")
    word = _word(known)
    return text.append(f"\n       {word}", style="dim")


def _word(deltas: list[float]) -> str:
    """Say what the number means, and no more than it means."""
    summary = summarise(deltas)
    direction = "better" if summary.mean > 0 else "worse" if summary.mean < 0 else "no better and no worse"
    if summary.half_width is None:
        return f"together is {direction} than apart for this seed; use --seeds 0-4 for an interval"
    if abs(summary.mean) <= summary.half_width:
        return f"the 95 % interval over {summary.n} seeds holds zero: no difference shown"
    return f"together is {direction} than apart (95 % interval over {summary.n} seeds)"


def _costs(results: Sequence[Result], with_baseline: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("cost")
    table.add_column("together" if with_baseline else "", justify="right")
    runs = [result.run for result in results]
    bases = [base for result in results for base in result.baselines.values()]
    parameters = _parameters(runs[0])
    columns = [[_count(parameters), *_measured(runs, 1)]]
    if with_baseline:
        table.add_column("apart", justify="right")
        single = sum(_parameters(base) for base in results[0].baselines.values())
        columns.append([_count(single), *_measured(bases, len(results[0].baselines))])
    for name, *cells in zip(("parameters", "training time", "peak memory"), *columns, strict=True):
        table.add_row(str(name), *[str(cell) for cell in cells])
    return table


def _measured(runs: Sequence[Trained], together: int) -> list[str]:
    """Return time and memory: the mean over seeds of the sum (of the highest) over ``together`` runs."""
    costs: list[Cost] = [run.cost for run in runs if run.cost is not None]
    if len(costs) < len(runs) or not costs:
        return [MISSING, MISSING]
    seconds = math.fsum(cost.seconds for cost in costs) / (len(costs) / together)
    return [_duration(seconds), f"{max(cost.peak_mb for cost in costs):,.0f} MB"]


def _failures(results: Sequence[Result]) -> list[Text]:
    lines = []
    for result in results:
        for trained in (result.run, *result.baselines.values()):
            values = trained.record.values
            if trained.record.status != "ok":
                spec = values["spec"]
                name = f"{spec['architecture']['name']}+{spec['weighting']['name']}"
                what = f"{name}, seed {result.seed}, {', '.join(spec['tasks'])}"
                lines.append(Text(f"{what} {values['status']}: {values['reason']}", style="red"))
    return lines


def _where(experiment: Experiment, results: Sequence[Result]) -> Text:
    folder = experiment.store.root.joinpath(*results[0].run.record.folder)
    names = ", ".join(result.run.record.run_id for result in results)
    reused = sum(t.cached for result in results for t in (result.run, *result.baselines.values()))
    note = (
        f"  ({reused} of {sum(1 + len(r.baselines) for r in results)} runs were there already)"
        if reused
        else ""
    )
    return Text(f"records  {folder}: {names}{note}", style="dim")


def _parameters(trained: Trained) -> int:
    return int(trained.record.values["parameters"]["total"])


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return MISSING if not known else f"{MISSING} ({len(known)} of {len(values)})"
    summary = summarise(known)
    half = "" if summary.half_width is None else f" ± {summary.half_width:.4f}"
    return f"{summary.mean:.4f}{half}"


def _percent(row: Sequence[Gain]) -> Text:
    known = [gain.percent for gain in row if gain.percent is not None]
    if len(known) < len(row):
        return Text(MISSING, style="dim")
    return Text(_signed(known), style=_colour(known))


def _signed(values: list[float]) -> str:
    summary = summarise(values)
    half = "" if summary.half_width is None else f" ± {summary.half_width:.2f}"
    return f"{summary.mean:+.2f}{half} %"


def _colour(values: list[float]) -> str:
    """Colour what was shown, not what the interval leaves open."""
    summary = summarise(values)
    if not summary.mean or (summary.half_width is not None and abs(summary.mean) <= summary.half_width):
        return "default"
    return "green" if summary.mean > 0 else "red"


def _count(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def comparison_json(result: Result) -> dict[str, Any]:
    """Return what ``--json`` adds to a record: Δ-MTL, and each gain with its baseline."""
    comparison = result.comparison
    return {
        "delta_mtl": {"tasks": comparison.delta, "metrics": comparison.delta_flat},
        "gains": {
            task: {
                gain.metric: {
                    "value": gain.value,
                    "baseline": gain.baseline,
                    "percent": gain.percent,
                    "why": gain.why,
                }
                for gain in comparison.gains
                if gain.task == task
            }
            for task in result.run.record.values["spec"]["tasks"]
        },
    }
