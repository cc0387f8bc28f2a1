"""From lists of settings to jobs: every run once, every baseline once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mtlbench.config import RunConfig, flag_name, read_toml
from mtlbench.errors import MtlbenchError
from mtlbench.experiment import Experiment, Loaded
from mtlbench.registry import Registry
from mtlbench.spec import split
from mtlbench.training.model import Run

SPECS = ("arch", "weight", "data", "encoder")
"""Settings that a comma separates into several, as in ``--arch hps,mmoe[experts=4]``."""

LISTS = ("seeds", "tasks", "aux", "augment", "head", "plugin")
"""Settings that are lists already, so that a list of them is one value."""


@dataclass(frozen=True)
class Job:
    """One run with one seed: what to train, under which name, and whether its record is there already."""

    experiment: Experiment
    run: Run
    run_id: str
    cached: bool
    baseline: bool

    @property
    def config(self) -> RunConfig:
        """The settings that make ``mtlbench run`` train exactly this."""
        settings = replace(
            self.experiment.config,
            seeds=(self.run.seed,),
            baseline=False,
            resume=True,
            quiet=True,
            save_model=False,
            profile=False,
        )
        if not self.baseline:
            return settings
        return replace(
            settings,
            tuning=None,
            arch=str(self.run.architecture),
            weight=str(self.run.weighting),
            tasks=self.run.tasks,
            grad=self.run.grad,
            scale=self.run.scale,
        )


@dataclass(frozen=True)
class Plan:
    """The jobs of a sweep, baselines first, and what was left out: (settings, why it cannot work)."""

    jobs: tuple[Job, ...]
    refused: tuple[tuple[str, str], ...]
    experiments: tuple[Experiment, ...]


def read(file: Path | None, flags: Mapping[str, Any]) -> list[RunConfig]:
    """Return the product of all lists in ``file`` and ``flags`` (flags win), one config each.

    Raises `MtlbenchError` for an unknown key or a value out of range, as ``mtlbench run`` does.
    """
    values: dict[str, Any] = read_toml(file) if file else {}
    values |= {name: value for name, value in flags.items() if value is not None}
    axes = {name: _axis(name, value) for name, value in values.items()}
    for name, choices in axes.items():
        if not choices:
            raise MtlbenchError(f"'{flag_name(name)}' is an empty list")
    configs = [
        RunConfig.resolve(None, dict(zip(axes, combination, strict=True)))
        for combination in itertools.product(*axes.values())
    ]
    return list(dict.fromkeys(configs))


def _axis(name: str, value: Any) -> list[Any]:
    if name in LISTS:
        return [value]
    if isinstance(value, list):
        return [choice for item in value for choice in _axis(name, item)]
    if name in SPECS and isinstance(value, str):
        parts = split(value)
        one_for_each_task = name == "encoder" and "=" in parts[0].partition("[")[0]
        return [value] if one_for_each_task else parts
    return [value]


def plan(
    configs: Sequence[RunConfig], registry: Registry, watch: Callable[[str], None] = lambda line: None
) -> Plan:
    """Check every combination with a trial step and list the jobs, each run once.

    What cannot work (a method without gradients by features, say) is left out and told; a word that no
    combination understands is an error.
    """
    loaded: dict[tuple[str, str], Loaded] = {}
    jobs: dict[str, Job] = {}
    baselines: dict[str, Job] = {}
    refused: list[tuple[str, str]] = []
    experiments = []
    for config in configs:
        title = label(config, configs)
        watch(title)
        try:
            experiment = Experiment(config, registry, loaded=loaded)
        except MtlbenchError as error:
            if len(configs) == 1:
                raise
            refused.append((title, str(error)))
            continue
        experiments.append(experiment)
        for seed in config.seeds:
            run, singles = experiment.runs(seed)
            for single in singles.values() if config.baseline else ():
                found = job(experiment, single, baseline=True)
                baselines.setdefault(found.run_id, found)
            found = job(experiment, run)
            jobs.setdefault(found.run_id, found)
    if refused and not experiments:
        raise MtlbenchError(f"none of the {len(configs)} combinations can run; the first: {refused[0][1]}")
    ordered = [*baselines.values(), *(found for name, found in jobs.items() if name not in baselines)]
    return Plan(tuple(ordered), tuple(refused), tuple(experiments))


def job(experiment: Experiment, run: Run, baseline: bool = False) -> Job:
    """Return a run as a job, looked up in the store."""
    name, record = experiment.look(run)
    return Job(experiment, run, name, record is not None, baseline)


def label(config: RunConfig, configs: Sequence[RunConfig]) -> str:
    """Name a combination by what varies in its grid."""
    varying = [
        f.name
        for f in fields(RunConfig)
        if f.name not in ("arch", "weight") and len({getattr(other, f.name) for other in configs}) > 1
    ]
    more = [f"{flag_name(name)} {getattr(config, name)}" for name in varying]
    return ", ".join([f"{config.arch}+{config.weight}", *more])
