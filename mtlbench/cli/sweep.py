"""``mtlbench sweep``: a grid of runs, and the table of them all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mtlbench.cli.run import RunCommand, options, prepare_environment, stop_signal


@click.command(cls=RunCommand, params=options(without=("force", "resume", "quiet", "json", "save_model")))
@click.argument("grid", type=click.Path(path_type=Path), required=False)
@click.option("--jobs", type=click.IntRange(1), default=1, metavar="N", help="Runs at once.  [default: 1]")
@click.option("--dry-run", is_flag=True, help="Only count the runs and estimate the hours.")
@click.option("--quiet", is_flag=True, help="Print nothing but the result.")
def sweep(grid: Path | None, jobs: int, dry_run: bool, quiet: bool, **flags: Any) -> None:
    """Train every combination of architectures, weightings, datasets and seeds.

    --arch, --weight, --data and --encoder take several specs, separated by commas. GRID is a TOML file with
    the same keys, where any value may be a list; flags win. Baselines are trained once; what is in the
    results folder is not trained again, so the same command goes on after an interruption.
    """
    from mtlbench.sweep.grid import plan, read

    flags |= {name: flags[name] or None for name in ("plugin", "head")}
    configs = read(grid, flags)
    prepare_environment()
    with _view(quiet) as view, stop_signal() as stop:
        from mtlbench.registry import Registry

        found = plan(configs, Registry(configs[0].plugin), view.planning)
        view.planned(found)
        if dry_run:
            from mtlbench.sweep.estimate import estimate

            click.echo(estimate(found, jobs))
            return
        import os

        import torch

        from mtlbench.sweep.local import execute, slots

        devices = torch.cuda.device_count() if configs[0].device in ("auto", "cuda") else 0
        places = slots(jobs, devices, len(os.sched_getaffinity(0)))
        states = execute(found.jobs, places, view.show, view.notice, lambda: bool(stop))
    _answer(configs[0].results, states)


def _answer(results: Path, states: Sequence[Any]) -> None:
    from mtlbench.cli.leaderboard import print_board
    from mtlbench.errors import RunFailedError

    tables = {(state.record.values["comparability"]) for state in states if state.record is not None}
    print_board(results, tables)
    failed = [state for state in states if state.state == "failed"]
    if failed:
        raise RunFailedError(
            f"{len(failed)} of {len(states)} runs ended without a result: {failed[0].job.run.label}:"
            f" {failed[0].reason}"
        )


@contextmanager
def _view(quiet: bool) -> Iterator[Any]:
    from mtlbench.sweep.view import view

    with view(quiet) as found:
        yield found
