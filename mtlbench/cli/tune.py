"""``mtlbench tune``: search weights or learning rate on validation; the best enters as a row."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from mtlbench.cli.run import RunCommand, options, prepare_environment, stop_signal
from mtlbench.cli.sweep import PLACE, WITHOUT, answer, choose_executor, executor_options


@click.command(cls=RunCommand, params=options(without=WITHOUT))
@click.option("--trials", type=click.IntRange(1), default=20, metavar="N", help="Runs to try.  [default: 20]")
@click.option("--with-lr", is_flag=True, help="Search the learning rate beside weights or --search, too.")
@click.option(
    "--search",
    multiple=True,
    metavar="NAME=LOW:HIGH",
    help="Search a parameter of the weighting.",
)
@executor_options
@click.option("--quiet", is_flag=True, help="Print nothing but the result.")
def tune(trials: int, with_lr: bool, search: tuple[str, ...], quiet: bool, **flags: Any) -> None:
    """Search the task weights of 'fixed', or what another weighting has to set, on validation.

    Other weightings are searched over the parameters that --search names, or else over the learning rate.

    The best of N trials is trained with all seeds and enters the leaderboard as a row that says how many
    trials it cost. --weight is 'fixed' unless given; several specs, as in a sweep, get N trials each.
    Trials are kept in the results folder, so the same command goes on after an interruption.
    """
    from mtlbench.errors import MtlbenchError
    from mtlbench.sweep.grid import plan, read
    from mtlbench.sweep.view import view as open_view

    flags |= {name: flags[name] or None for name in ("plugin", "head")}
    place = {name: flags.pop(name) for name in PLACE}
    configs = read(None, {**flags, "weight": flags["weight"] or "fixed"})
    prepare_environment()
    with open_view(quiet) as view, stop_signal() as stop:
        from mtlbench.registry import Registry

        try:
            from mtlbench.sweep.tune import Range
            from mtlbench.sweep.tune import tune as find
        except ModuleNotFoundError as error:
            if error.name != "optuna":
                raise
            raise MtlbenchError("'mtlbench tune' needs Optuna: pip install 'mtlbench[tune]'") from None

        ranges = dict(map(Range.parse, search))
        registry = Registry(configs[0].plugin)
        with choose_executor(configs[0], **place) as execute:
            train = partial(execute, watch=view.show, notice=view.notice, stopped=lambda: bool(stop))
            tuned = [
                find(config, trials, with_lr, ranges, registry, train, view.notice) for config in configs
            ]
            found = plan(tuned, registry, view.planning)
            view.planned(found)
            states = train(found.jobs)
    answer(configs[0].results, states)
