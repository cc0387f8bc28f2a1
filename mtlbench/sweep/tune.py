"""The search for fixed task weights or a learning rate, on validation.

A weighted sum with well-chosen weights is the baseline that methods must beat (arXiv:2201.04122,
arXiv:2209.11379), and a method whose learning rate was searched no longer compares with one whose was not. So
every search has the same budget of whole runs, and its size goes into the record of what it found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna

from mtlbench.config import RunConfig, Tuning
from mtlbench.errors import MtlbenchError, RunFailedError, did_you_mean
from mtlbench.experiment import Experiment, Loaded
from mtlbench.registry import Registry
from mtlbench.spec import Spec, format_spec
from mtlbench.sweep.grid import Job, job
from mtlbench.sweep.state import State

FOLDER = ".trials"
"""Where the runs of searches are kept inside a store: a store of its own, which no leaderboard reads."""

RANDOM = 10
"""Trials before the search learns from them: the first one is untuned, the others are drawn at random."""

SPREAD = 10.0
"""Every weight, and the learning rate, is searched from a tenth of what it would be to ten times that."""


@dataclass(frozen=True)
class Range:
    """Where a weighting's own parameter is searched: ``low``..``high``, in logarithms if that is tenfold."""

    low: float
    high: float

    @classmethod
    def parse(cls, text: str) -> tuple[str, Range]:
        """Read ``name=low:high``."""
        name, equals, bounds = text.partition("=")
        try:
            low, high = map(float, bounds.split(":"))
        except ValueError:
            low = high = math.nan
        if not name.isidentifier() or not equals or not -math.inf < low < high < math.inf:
            raise MtlbenchError(f"--search: expected name=low:high, such as c=0.1:0.9, found {text!r}")
        return name, cls(low, high)

    def check(self, name: str, value: Any) -> None:
        """Raise `MtlbenchError` where the parameter, which has this value now, is no number of this kind."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise MtlbenchError(f"--search: '{name}' is no number, found {value!r}")
        if isinstance(value, int) and not (self.low.is_integer() and self.high.is_integer()):
            raise MtlbenchError(f"--search: '{name}' is a whole number, found {self.low:g}:{self.high:g}")

    def draw(self, trial: optuna.Trial, name: str, value: Any) -> float:
        """Return what the trial takes, in four digits; a whole number where the parameter is one."""
        log = self.low > 0 and self.high >= SPREAD * self.low
        if isinstance(value, int):
            return trial.suggest_int(name, int(self.low), int(self.high), log=log)
        return float(f"{trial.suggest_float(name, self.low, self.high, log=log):.4g}")


def tune(
    config: RunConfig,
    trials: int,
    with_lr: bool,
    ranges: Mapping[str, Range],
    registry: Registry,
    execute: Callable[[Sequence[Job]], list[State]],
    notice: Callable[[str], None],
) -> RunConfig:
    """Return ``config`` with the settings of the best of so many trials, and the search noted in it.

    ``fixed`` without weights is searched over its weights (log-uniform, then scaled to add up to the number
    of tasks), everything else over the parameters that ``ranges`` names; both over the learning rate, too,
    with ``with_lr`` or where there is nothing else to search. The best trial has the lowest selection score,
    by which every run selects its epoch: the geometric mean of the validation losses. Trials are runs with
    the first seed, and the search (Optuna's TPE, Bergstra et al. 2011) is drawn from that seed, so the same
    call finds them in the store. The first `RANDOM` are handed out together, the others one by one: how many
    run at once changes no trial.

    Raises `RunFailedError` where every trial failed.
    """
    weights = Spec.parse(config.weight) == Spec("fixed")
    own = ("weights",) if weights else tuple(ranges)
    over = (*own, "lr") if with_lr or not own else own
    first = config.seeds[0]
    loaded: dict[tuple[str, str], Loaded] = {}
    base = replace(
        config, seeds=(first,), baseline=False, save_model=False, results=config.results / FOLDER, tuning=None
    )
    run = Experiment(replace(base, weight="ew") if weights else base, registry, loaded=loaded).run
    tasks, known = run.tasks, run.weighting.parameters
    if weights and ranges:
        raise MtlbenchError("--search: 'fixed' without weights is searched over its weights")
    for name, limits in ranges.items():
        if name not in known:
            raise MtlbenchError(
                f"--search: {run.weighting.plugin.name} has no parameter '{name}'.{did_you_mean(name, known)}"
            )
        limits.check(name, known[name])
    if weights and len(tasks) == 1:
        raise MtlbenchError(f"one task ({tasks[0]}) leaves no weights to tune; choose several with --tasks")

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=first, n_startup_trials=RANDOM))
    names = [f"weight {task}" for task in tasks] if weights else []
    asis = {name: known[name] for name, limits in ranges.items() if limits.low <= known[name] <= limits.high}
    study.enqueue_trial(asis | dict.fromkeys([*names, *(["lr"] if "lr" in over else [])], 1.0))
    best: tuple[float, RunConfig] | None = None
    reason = None
    made = 0
    while made < trials:
        asked = [study.ask() for _ in range(1 if made else min(RANDOM, trials))]
        made += len(asked)
        settings = [_settings(trial, base, tasks, over, ranges, known) for trial in asked]
        jobs = [job(found, found.run) for found in (Experiment(s, registry, loaded=loaded) for s in settings)]
        states = {
            state.job.run_id: state for state in execute(list({job.run_id: job for job in jobs}.values()))
        }
        for trial, setting, planned in zip(asked, settings, jobs, strict=True):
            state = states[planned.run_id]
            if state.state != "done" or state.record is None:
                reason = state.reason
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)  # to TPE it is worse than any other
                notice(f"trial {trial.number + 1}/{trials}: failed: {reason}")
                continue
            score = float(state.record.values["selection"]["score"])
            study.tell(trial, score)
            if best is None or score < best[0]:
                best = score, setting
            now, least = math.exp(score), math.exp(best[0])
            notice(f"trial {trial.number + 1}/{trials}: mean validation loss {now:.4g}, best {least:.4g}")
    if best is None:
        raise RunFailedError(f"all {trials} trials of {config.arch}+{config.weight} failed: {reason}")
    found = best[1]
    tuning = Tuning(trials, over, first, found.lr if "lr" in over else None)
    return replace(config, weight=found.weight, tuning=str(tuning))


def _settings(
    trial: optuna.Trial,
    base: RunConfig,
    tasks: Sequence[str],
    over: Sequence[str],
    ranges: Mapping[str, Range],
    known: Mapping[str, Any],
) -> RunConfig:
    """Return the settings of a trial, in four digits, so that a person can type them."""

    def factor(name: str) -> float:
        return trial.suggest_float(name, 1 / SPREAD, SPREAD, log=True)

    changes: dict[str, Any] = {}
    if "weights" in over:
        drawn = [factor(f"weight {task}") for task in tasks]
        scaled = [float(f"{len(tasks) * weight / math.fsum(drawn):.4g}") for weight in drawn]
        changes["weight"] = format_spec("fixed", {"weights": scaled})
    if ranges:
        own = {name: limits.draw(trial, name, known[name]) for name, limits in ranges.items()}
        changes["weight"] = format_spec(Spec.parse(base.weight).name, {**known, **own})
    if "lr" in over:
        changes["lr"] = float(f"{base.lr * factor('lr'):.4g}")
    return replace(base, **changes)
