"""``mtlbench sweep``: a grid of runs, and the table of them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtlbench.cli.run import RunCommand, options, prepare_environment, stop_signal

if TYPE_CHECKING:
    from mtlbench.config import RunConfig
    from mtlbench.sweep.executor import Executor
    from mtlbench.sweep.state import State

WITHOUT = ("force", "resume", "quiet", "json", "save_model", "tuning", "profile")
"""Settings of a single run that commands for many have no use for."""

PLACE = ("executor", "jobs", "address", "cpus_per_run", "gpus_per_run", "slurm")
"""What `executor_options` adds and `choose_executor` takes."""

QUEUED = 100
"""Jobs in a Slurm queue at most, unless ``--jobs`` says otherwise."""


def executor_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what says where runs are trained."""
    number, share = click.IntRange(1), click.FloatRange(0)
    for add in (
        click.option(
            "--slurm", default="", metavar="KEY=VALUE,…", help="Of its jobs, such as partition=gpu,time=120."
        ),
        click.option(
            "--gpus-per-run", type=share, default=0.0, metavar="X", help="With ray and slurm.  [default: 0]"
        ),
        click.option(
            "--cpus-per-run", type=number, default=1, metavar="N", help="With ray and slurm.  [default: 1]"
        ),
        click.option("--address", metavar="HOST:PORT", help="Of a Ray cluster.  [default: one of its own]"),
        click.option(
            "--executor",
            type=click.Choice(["local", "ray", "slurm"]),
            default="local",
            help="Who trains the runs.",
        ),
        click.option(
            "--jobs",
            type=number,
            metavar="N",
            help=f"Runs at once, with local and slurm.  [default: 1; in a Slurm queue {QUEUED}]",
        ),
    ):
        command = add(command)
    return command


def choose_executor(
    config: RunConfig,
    executor: str,
    jobs: int | None,
    address: str | None,
    cpus_per_run: int,
    gpus_per_run: float,
    slurm: str,
) -> Executor:
    """Return the executor that the options name."""
    if executor == "ray":
        with _extra("ray", "Ray"):
            from mtlbench.sweep.ray import Ray
        return Ray(address, cpus_per_run, gpus_per_run)
    if executor == "slurm":
        with _extra("slurm", "submitit"):
            from mtlbench.sweep.slurm import Slurm, parameters
        return Slurm(config.results, jobs or QUEUED, parameters(slurm, cpus_per_run, gpus_per_run))
    import os

    import torch

    from mtlbench.sweep.local import Local, slots

    devices = torch.cuda.device_count() if config.device in ("auto", "cuda") else 0
    return Local(slots(jobs or 1, devices, len(os.sched_getaffinity(0))))


@contextmanager
def _extra(name: str, package: str) -> Iterator[None]:
    """Say how to get what an executor needs and is not installed."""
    from mtlbench.errors import MtlbenchError

    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != package.lower():
            raise
        raise MtlbenchError(f"'--executor {name}' needs {package}: pip install 'mtlbench[{name}]'") from None


@click.command(cls=RunCommand, params=options(without=WITHOUT))
@click.argument("grid", type=click.Path(path_type=Path), required=False)
@executor_options
@click.option("--dry-run", is_flag=True, help="Only count the runs and estimate the hours.")
@click.option("--quiet", is_flag=True, help="Print nothing but the result.")
def sweep(grid: Path | None, dry_run: bool, quiet: bool, **flags: Any) -> None:
    """Train every combination of architectures, weightings, datasets and seeds.

    --arch, --weight, --data and --encoder take several specs, separated by commas. GRID is a TOML file with
    the same keys, where any value may be a list; flags win. Baselines are trained once; what is in the
    results folder is not trained again, so the same command goes on after an interruption.
    """
    from mtlbench.sweep.grid import plan, read
    from mtlbench.sweep.view import view as open_view

    flags |= {name: flags[name] or None for name in ("plugin", "head")}
    place = {name: flags.pop(name) for name in PLACE}
    configs = read(grid, flags)
    prepare_environment()
    with open_view(quiet) as view, stop_signal() as stop:
        from mtlbench.registry import Registry

        found = plan(configs, Registry(configs[0].plugin), view.planning)
        view.planned(found)
        if dry_run:
            from mtlbench.sweep.estimate import estimate

            click.echo(estimate(found, place["jobs"] or 1))
            return
        with choose_executor(configs[0], **place) as execute:
            states = execute(found.jobs, watch=view.show, notice=view.notice, stopped=lambda: bool(stop))
        found.experiments[0].store.tidy()
    answer(configs[0].results, states)


def answer(results: Path, states: Sequence[State]) -> None:
    """Print the tables that the runs stand in; an error where one has no result."""
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
