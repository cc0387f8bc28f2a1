"""``mtlbench run``: train, compare, answer."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from types import FrameType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from mtlbench.cli.together import launched, together
from mtlbench.config import Protocol, RunConfig, flag_name
from mtlbench.errors import RunFailedError


class RunCommand(click.Command):
    """Prints its options in two sections: what is run, and under which protocol."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write both sections."""
        protocol = {f.name for f in fields(Protocol)}
        sections: dict[str, list[tuple[str, str]]] = {
            "Options": [],
            "Protocol (equal for comparable runs)": [],
        }
        for parameter in self.get_params(ctx):
            line = parameter.get_help_record(ctx)
            if line is not None:
                sections[list(sections)[parameter.name in protocol]].append(line)
        for title, lines in sections.items():
            with formatter.section(title):
                formatter.write_dl(lines)


def options(without: Collection[str] = ()) -> list[click.Option]:
    """Make one flag of every setting; its default is told, and given only where no one else gave a value."""
    hints = get_type_hints(RunConfig)
    options = []
    for setting in sorted(fields(RunConfig), key=lambda f: f.name in {p.name for p in fields(Protocol)}):
        if setting.name in without:
            continue
        hint, flag = hints[setting.name], "--" + flag_name(setting.name)
        names = [flag, setting.name]
        extra: dict[str, Any] = {}
        help_text = setting.metadata["help"]
        if hint in (bool, bool | None):
            names[0] = f"{flag}/--no-{flag_name(setting.name)}"
        elif get_origin(hint) is Literal:
            extra["type"] = click.Choice([str(choice) for choice in get_args(hint)])
        elif hint in (int, float):
            extra["type"] = hint
        elif setting.name == "plugin":
            extra |= {"multiple": True, "type": click.Path(path_type=Path), "metavar": "FILE"}
        elif setting.name == "head":
            extra |= {"multiple": True, "metavar": "TASK=SPEC"}
        elif setting.name in ("results", "data_dir"):
            extra |= {"type": click.Path(path_type=Path), "metavar": "DIR"}
        else:
            lists = dict.fromkeys(("seeds", "tasks", "aux", "augment"), "LIST")
            extra["metavar"] = (lists | {"device": "NAME"}).get(setting.name, "SPEC")
        if setting.name == "seeds":
            names.insert(0, "--seed")
        default = setting.default
        if default not in (None, MISSING, ()) and not isinstance(default, bool):
            shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
            help_text += f"  [default: {shown}]"
        options.append(click.Option(names, default=None, help=help_text, **extra))
    return options


@click.command(cls=RunCommand, params=options())
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="TOML file with the same keys; flags win.",
)
def run(config: Path | None, **flags: Any) -> None:
    """Train an architecture with a weighting on a dataset, and answer with Δ-MTL.

    Missing single-task baselines are trained first; runs that are in the results folder already are not
    trained again.
    """
    flags |= {name: flags[name] or None for name in ("plugin", "head")}  # click gives () for none
    settings = RunConfig.resolve(config, flags)

    prepare_environment()
    from mtlbench.cli.progress import watcher
    from mtlbench.registry import Registry

    rank, size = launched()
    with watcher(settings.quiet or rank > 0) as watch, stop_signal(size) as stop:
        from mtlbench.experiment import Experiment  # torch and its seconds, after the first sign of life
        from mtlbench.training.memory import keep_freed_memory

        keep_freed_memory()
        with together(settings.device) as ranks:
            experiment = Experiment(settings, Registry(settings.plugin), ranks)
            results = experiment.execute(watch, lambda: bool(stop))
    if rank == 0:
        _answer(settings, experiment, results)
    failed = [t for r in results for t in (r.run, *r.baselines.values()) if t.record.status != "ok"]
    if failed:
        values = failed[0].record.values
        raise RunFailedError(
            f"{len(failed)} of the runs ended without a result: {values['spec']['architecture']['name']}+"
            f"{values['spec']['weighting']['name']} {values['status']}: {values['reason']}"
        )


def prepare_environment() -> None:
    """Set what torch reads when it is imported.

    cuBLAS is deterministic only with a workspace of fixed size. Idle OpenMP threads spin by default, which
    was a quarter faster on two idle cores and ten times slower on two busy ones, where a spinning thread
    keeps a working one from running; so they sleep where the machine is busy. Results do not depend on it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1):
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _answer(settings: RunConfig, experiment: Any, results: Any) -> None:
    from mtlbench.leaderboard.table import comparison_json, render
    from mtlbench.leaderboard.timing import timing

    if settings.json:
        import json

        for result in results:
            line = {**result.run.record.values, "comparison": comparison_json(result)}
            if result.run.profile is not None:
                line["profile"] = result.run.profile.values()
            click.echo(json.dumps(line, sort_keys=True, ensure_ascii=False, allow_nan=False))
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, 200)
    with console.capture() as captured:
        console.print(render(experiment, results))
        for result in results:
            if result.run.profile is not None:
                run = experiment.run
                console.print(
                    timing(f"{run.architecture} + {run.weighting}, seed {result.seed}", result.run.profile)
                )
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


@contextmanager
def stop_signal(processes: int = 1) -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP: the first asks to stop at the next step, a second one insists.

    With several processes torchrun hands signals on, to all of them, and insists itself after a while.
    """
    caught: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if caught and processes == 1:
            raise KeyboardInterrupt
        caught.append(number)
        if processes == 1:
            os.write(2, b"stopping after this step; once more stops at once\n")  # print is not reentrant

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
