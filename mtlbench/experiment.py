"""One command's worth of runs: every seed of one configuration, each beside its single-task baselines."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch

import mtlbench
from mtlbench.config import BASELINE, RunConfig, Tuning
from mtlbench.contracts import Dataset, Encoder, Task, Weighting
from mtlbench.data.augment import choose as choose_augmentations
from mtlbench.data.auxiliary import with_auxiliary
from mtlbench.data.folder import data_folder
from mtlbench.data.verify import verify
from mtlbench.errors import Busy, Interrupted, MtlbenchError, RunFailedError
from mtlbench.gradients import Precision
from mtlbench.heads import HeadChoice, choose_head
from mtlbench.parallel import ALONE, Ranks
from mtlbench.registry import Choice, Registry, source_digest
from mtlbench.results import Comparison, Cost, Record, Store, comparability_key, compare, run_id
from mtlbench.results.record import SCHEMA
from mtlbench.spec import by_task
from mtlbench.training import checkpoint as checkpoints
from mtlbench.training.augmented import augmented, build_augment
from mtlbench.training.compiled import require_compilable
from mtlbench.training.loop import Outcome, pick_device, train
from mtlbench.training.model import Run, build, build_engine, choose_tasks
from mtlbench.training.profile import Profile
from mtlbench.training.report import Reporter

CORE = ["mtlbench.training.loop"]
"""What, with all that it imports, decides every run's result; plugins bring their own losses and solvers."""


class Watcher(Reporter, Protocol):
    """A reporter that also hears what concerns more than one run."""

    def notice(self, text: str) -> None:
        """Something that the user should know before or between runs."""


@dataclass(frozen=True)
class Trained:
    """A record, what it cost (None: not measured or lost), and whether it was in the store already.

    profile: where the time went, if that was asked for and it was trained now.
    """

    record: Record
    cost: Cost | None
    cached: bool
    profile: Profile | None = None


@dataclass(frozen=True)
class Result:
    """One seed: the run, its baselines by task name, and how they compare."""

    seed: int
    run: Trained
    baselines: dict[str, Trained]
    comparison: Comparison


@dataclass(frozen=True)
class Loaded:
    """A dataset that was read through once: several experiments of one command share it."""

    dataset: Dataset
    fingerprint: str
    oddities: list[str]
    counts: dict[str, int]


class Experiment:
    """Everything that ``mtlbench run`` was asked for, checked before anything is trained.

    loaded: datasets by specs (auxiliary tasks included) and folder that are read already; the
    experiment's own is added to it.
    """

    def __init__(
        self,
        config: RunConfig,
        registry: Registry,
        ranks: Ranks = ALONE,
        loaded: MutableMapping[tuple[str, str], Loaded] | None = None,
    ) -> None:
        self.config, self.ranks = config, ranks
        self._wait = True
        self.store = Store(config.results)
        self.device = pick_device(config.device) if ranks.size == 1 else ranks.device
        Precision(config.precision).check(self.device)
        if config.compile and config.sync_bn and ranks.size > 1:
            raise MtlbenchError(
                "--compile would compile what --sync-bn sends between processes; leave one of them out"
            )
        # First everything that a wrong word could spoil, then what takes time or leaves files.
        data = registry.choose("datasets", config.data)
        architecture = registry.choose("architectures", config.arch)
        weighting = registry.choose("weightings", config.weight)
        asked = config.encoder or data.cls.encoder
        specs = by_task(asked)
        encoders = {task: registry.choose("encoders", spec) for task, spec in (specs or {"": asked}).items()}
        heads = _heads(config.head)
        tuning = None if config.tuning is None else Tuning.parse(config.tuning)
        if tuning and (unknown := [n for n in tuning.over if n not in ("lr", *weighting.parameters)]):
            raise MtlbenchError(f"'tuning' is over {unknown[0]}, which is no parameter of {weighting}")
        auxiliary = tuple(registry.choose("auxiliary", spec) for spec in config.aux)
        augment = choose_augmentations(config.augment)
        if config.score_aux and not auxiliary:
            raise MtlbenchError("--score-aux: there is no auxiliary task; name some with --aux")
        self.single = (
            registry.choose("architectures", BASELINE[0]),
            registry.choose("weightings", BASELINE[1]),
        )
        self.store.check()
        folder = data_folder(config.data_dir)
        where = (", ".join(map(str, (data, *auxiliary, config.score_aux))), str(folder))
        known_data = None if loaded is None else loaded.get(where)
        self.dataset: Dataset = (
            known_data.dataset
            if known_data
            else with_auxiliary(
                data.build(data_dir=folder, memory=int(config.memory * 2**30)),
                [choice.build() for choice in auxiliary],
                config.score_aux,
            )
        )
        known = [task.name for task in self.dataset.tasks]
        tasks = choose_tasks(self.dataset, config.tasks or known)
        chosen = {t.name: _chosen(heads[t.name], t) for t in choose_tasks(self.dataset, [*heads])}
        choose_tasks(self.dataset, [*(specs or ())])
        trained = [task.name for task in tasks]
        self._unused = [
            f"{flag} {task}={spec} has no effect: --tasks leaves '{task}' out"
            for flag, given in (("--encoder", specs or {}), ("--head", heads))
            for task, spec in given.items()
            if task not in trained
        ]
        for task in tasks:
            if specs and task.name not in specs:
                raise MtlbenchError(f"--encoder {asked!r} names no encoder for the task '{task.name}'")
        self.run = Run(
            architecture,
            weighting,
            {task.name: encoders[task.name if specs else ""] for task in tasks},
            {name: chosen[name] for name in trained if name in chosen},
            data,
            tuple(trained),
            config.grad,
            config.scale,
            config.seeds[0],
            # Without --sync-bn the processes are part of what is computed: each normalises its own samples.
            config.protocol
            | {"shards": 1 if config.sync_bn else ranks.size}
            | ({"augment": augment} if augment else {}),
            registry,
            config.probe,
            config.sync_bn,
            tuning,
            config.workers,
            auxiliary,
            config.validate_every,
        )
        # Reading everything takes longer than one step: first what a wrong combination fails at.
        self._check_combination()
        if known_data is None:
            known_data = Loaded(self.dataset, *verify(self.dataset), self.dataset.counts())
            if loaded is not None:
                loaded[where] = known_data
        self._fingerprint, self._oddities = known_data.fingerprint, known_data.oddities
        self._counts = known_data.counts
        self._core = code_digest(*CORE)

    def _check_combination(self) -> None:
        """Make one step on two samples: what cannot work is refused before any baseline is trained."""
        for name, count in self.dataset.counts().items():
            if not count:
                raise MtlbenchError(f"{self.dataset.title}: the split '{name}' is empty")
        if self.run.protocol["compile"]:
            require_compilable(self.dataset, len(self.run.tasks))
        try:
            weighting = self._trial()
        except (MtlbenchError, OSError):
            raise
        except Exception as error:
            if os.environ.get("MTLBENCH_TRACEBACK"):
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise MtlbenchError(
                f"{self.run.label}: a trial step failed: {what}"
                f" ({Path(where.filename).name}:{where.lineno}; MTLBENCH_TRACEBACK=1 shows the way there)"
            ) from error
        # What a wrapper does depends on the code of what it wraps, too.
        inside = {type(part).__module__ for part in weighting.modules() if isinstance(part, Weighting)}
        self._weighting_modules = sorted(inside)

    def _trial(self) -> Weighting:
        run = replace(
            self.run, protocol=self.run.protocol | {"compile": False}
        )  # two samples are not worth it
        model, weighting = build(run, self.dataset)
        engine = build_engine(run, self.dataset, model, weighting)
        split, cpu = self.dataset.split("train"), torch.device("cpu")
        augment = build_augment(self.run.protocol, self.dataset, choose_tasks(self.dataset, self.run.tasks))
        two = {
            name: augmented(part, augment, self.run.seed, 0, name).fetch(torch.arange(len(part))[:2]).to(cpu)
            for name, part in (split.items() if isinstance(split, Mapping) else [("", split)])
        }
        with suppress(RunFailedError):  # that a method gives up on this batch is no reason not to train
            batch = two if isinstance(split, Mapping) else two[""]
            others = [batch] * (weighting.needs.batches - 1)
            engine.step(batch, others=others, rate=self.run.settings["lr"])
        return weighting

    def runs(self, seed: int) -> tuple[Run, dict[str, Run]]:
        """Return the run of a seed and the single-task runs that it is measured against, by task."""
        run = replace(self.run, seed=seed)
        return run, self._baselines(run)

    def look(self, run: Run) -> tuple[str, Record | None]:
        """Return the run's id, and its record where the store has one."""
        name = run_id(self._identity(run))
        return name, self.store.find((run.dataset.plugin.name, run.name), name)

    def give_up(self, run: Run, reason: str) -> Record:
        """Keep a record that says that the run came to nothing, such as when its process was killed."""
        identity = self._identity(run)
        outcome = Outcome(
            status="failed",
            reason=reason,
            test={},
            history=[],
            selected=None,
            parameters={"total": 0},
            skipped=0,
            model={},
            steps=0,
            samples=0,
            seconds=0.0,
            step_ms=0.0,
            peak_mb=0.0,
        )
        record = self._record(run, run_id(identity), identity, outcome)
        return self.store.add(record, Cost(0.0, 0.0, 0.0, describe_device(self.device), _now()))

    def keep(self, record: Record, cost: Cost | None) -> None:
        """Keep the record of a run that was trained elsewhere."""
        self.store.add(record, cost or Cost(0.0, 0.0, 0.0, "unknown", _now()))

    def execute(self, watcher: Watcher, stopped: Callable[[], bool], wait: bool = True) -> list[Result]:
        """Train what the store lacks, baselines first, and return one result a seed.

        wait: whether to wait for a run that another process trains; otherwise `Busy` is raised.
        """
        self._wait = wait
        for line in filter(None, (self.dataset.notice, *self._unused, *self._oddities)):
            watcher.notice(line)
        return [self._seed(seed, watcher, stopped) for seed in self.config.seeds]

    def _seed(self, seed: int, watcher: Watcher, stopped: Callable[[], bool]) -> Result:
        run = replace(self.run, seed=seed)
        needed = self._baselines(run)
        wanted = needed if self.config.baseline else {}
        baselines = {task: self._obtain(base, watcher, stopped) for task, base in wanted.items()}
        trained = self._obtain(run, watcher, stopped, asked=True)
        comparison = compare(trained.record, {task: found.record for task, found in baselines.items()})
        return Result(seed, trained, baselines, comparison)

    def _baselines(self, run: Run) -> dict[str, Run]:
        """Return the single-task run of every task; none where ``run`` is one itself."""
        architecture, weighting = self.single
        single = replace(
            run,
            architecture=architecture,
            weighting=weighting,
            grad="parameters",
            scale="published",
            tuning=None,
        )
        if single == run and len(run.tasks) == 1:
            return {}
        scored = [t.name for t in choose_tasks(self.dataset, run.tasks) if not t.auxiliary]
        return {name: single.only(name) for name in scored}

    def _obtain(
        self, run: Run, watcher: Watcher, stopped: Callable[[], bool], asked: bool = False
    ) -> Trained:
        """Return the record of a run, trained where the store lacks it.

        asked: whether it is what was asked for, and not a baseline: ``--force`` and ``--save-model`` hold for
        it. A model that was asked for and is missing is made by training again, to the same scores.
        """
        identity = self._identity(run)
        name = run_id(identity)
        self.ranks.agree(name, "config, data or code")
        kept = self._kept(run, name, asked)
        if kept is not None:
            if kept.values["env"] != self._env():
                watcher.notice(
                    f"{run.label}: the record that is there was made with another set-up (see its env)"
                )
            if run.probe and len(run.tasks) > 1 and not any(row.get("gradients") for row in kept.history):
                watcher.notice(
                    f"{run.label}: the record that is there was made without --probe; --force trains it again"
                )
            if asked and self.config.profile:
                watcher.notice(
                    f"{run.label}: the record is there, so nothing is trained that --profile could measure;"
                    " --force trains it again"
                )
            if run.validate_every and not any("within" in row for row in kept.history):
                watcher.notice(
                    f"{run.label}: the record that is there was made without --validate-every; with another"
                    " --results it is trained again"
                )
            return Trained(kept, self.store.cost(kept), cached=True)
        with self._claimed(run, name, watcher, stopped):
            kept = self._kept(run, name, asked)  # whoever held the run before may have left it
            if kept is not None:
                return Trained(kept, self.store.cost(kept), cached=True)
            return self._train(run, name, identity, watcher, stopped, asked)

    @contextmanager
    def _claimed(self, run: Run, name: str, watcher: Watcher, stopped: Callable[[], bool]) -> Iterator[None]:
        """Hold the run, so that two commands never train it at once or write into one checkpoint."""
        told = False
        with ExitStack() as held:

            def claim() -> bool:
                held.close()
                return held.enter_context(self.store.claim(name))

            # All ranks go round together: one that is silent for long is taken for lost.
            while not self.ranks.from_first(claim):
                if not self._wait:
                    raise Busy(f"{run.label}: another process trains it")
                if self.ranks.any(stopped()):
                    raise Interrupted(f"{run.label}: stopped while another process trains it")
                if not told:
                    watcher.notice(f"{run.label}: another process trains it; waiting for its record")
                    told = True
                time.sleep(0.2)
            yield

    def _train(
        self,
        run: Run,
        name: str,
        identity: dict[str, Any],
        watcher: Watcher,
        stopped: Callable[[], bool],
        asked: bool,
    ) -> Trained:
        force = asked and self.config.force
        checkpoint = self.store.checkpoint(name)
        if checkpoint.exists() and not self.config.resume:
            watcher.notice(
                f"{run.label}: starting anew; --resume would go on from the checkpoint that is there"
            )
        try:
            outcome = train(
                run,
                self.dataset,
                self.device,
                watcher,
                checkpoint,
                self.config.resume,
                stopped,
                self.ranks,
                self.config.profile,
            )
        except Interrupted:
            raise Interrupted(
                f"{run.label}: a checkpoint is kept; the same command with --resume goes on"
            ) from None
        record = self._record(run, name, identity, outcome)
        cost = Cost(
            round(outcome.seconds, 3),
            round(outcome.step_ms, 3),
            round(outcome.peak_mb, 1),
            describe_device(self.device),
            _now(),
        )
        keep_model = asked and self.config.save_model is not False
        record = self.ranks.from_first(
            lambda: self._keep(record, cost, force, outcome.model if keep_model else {}, watcher)
        )
        if self.ranks.first and outcome.profile is not None:
            self.store.add_profile(record, outcome.profile.dumps())
        if self.ranks.first:
            checkpoints.discard(checkpoint)
        return Trained(record, self.store.cost(record), False, outcome.profile)

    def _kept(self, run: Run, name: str, asked: bool) -> Record | None:
        """Return the record of a run where the store has all that is wanted of it; see `_obtain`."""

        def find() -> Record | None:
            kept = self.store.find((run.dataset.plugin.name, run.name), name)
            wants_model = asked and self.config.save_model is True
            if (
                kept is not None
                and kept.status == "ok"
                and wants_model
                and not self.store.model(kept).exists()
            ):
                return None
            return kept

        return None if asked and self.config.force else self.ranks.from_first(find)

    def _keep(
        self, trained: Record, cost: Cost, force: bool, model: dict[str, torch.Tensor], watcher: Watcher
    ) -> Record:
        """Store a record, and the model if there is one; return what the store holds."""
        record = self.store.add(trained, cost, again=force)
        if model:
            if any(trained.values[key] != record.values[key] for key in ("selection", "metrics", "losses")):
                watcher.notice(
                    f"{record.folder[1]}: trained again, it came out otherwise (see env in the record), so"
                    " the model is not kept; --force keeps both"
                )
            else:
                self.store.add_model(record, checkpoints.dumps({"model": model}))
        return record

    def _env(self) -> dict[str, Any]:
        return {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": describe_device(self.device),
            "processor": describe_processor(),
            "threads": torch.get_num_threads(),
            "processes": self.ranks.size,
        }

    def _identity(self, run: Run) -> dict[str, Any]:
        def named(choice: Choice) -> dict[str, Any]:
            known = choice.parameters
            decide = choice.cls.identity(known) if issubclass(choice.cls, Encoder) else known
            return {"name": choice.plugin.name, "parameters": decide}

        def one_or_each(found: dict[str, Any]) -> dict[str, Any]:
            return found.get("") or {"by_task": found}

        def code(choice: Choice) -> dict[str, str]:
            # Of a plugin file only the name: where it lies on this machine makes no difference to the run.
            origin = Path(choice.plugin.origin).name
            own = choice is self.run.weighting
            modules = self._weighting_modules if own else [choice.plugin.module]
            return {"origin": origin, "source": code_digest(*modules)}

        parts = {
            "architecture": run.architecture,
            "weighting": run.weighting,
            "dataset": run.dataset,
        }
        encoders = {"": run.encoder} if run.encoder else run.encoders
        metrics = {
            task.name: {
                metric.name: {
                    "unit": metric.unit,
                    "higher_is_better": metric.higher_is_better,
                    "version": metric.version,
                    "auxiliary": task.auxiliary,
                }
                for metric in task.metrics
            }
            for task in self.dataset.tasks
        }
        return {
            "spec": {
                **{kind: named(choice) for kind, choice in parts.items()},
                "encoder": one_or_each({task: named(choice) for task, choice in encoders.items()}),
                "heads": {task: vars(head) for task, head in run.heads.items()},
                "auxiliary": [named(choice) for choice in run.auxiliary],
                "tasks": list(run.tasks),
                "grad": run.grad,
                "scale": run.scale,
                "seed": run.seed,
                **({} if run.tuning is None else {"tuning": {"name": "tpe", "parameters": vars(run.tuning)}}),
            },
            "protocol": run.protocol,
            "data": {
                "title": self.dataset.title,
                "fingerprint": self._fingerprint,
                "counts": self._counts,
                "metrics": metrics,
            },
            "code": {
                "mtlbench": mtlbench.__version__,
                "core": self._core,
                **{kind: code(choice) for kind, choice in parts.items()},
                "encoder": one_or_each({task: code(choice) for task, choice in encoders.items()}),
                "auxiliary": [code(choice) for choice in run.auxiliary],
            },
        }

    def _record(self, run: Run, name: str, identity: dict[str, Any], outcome: Outcome) -> Record:
        baselines = {task: run_id(self._identity(base)) for task, base in self._baselines(run).items()}
        metrics = identity["data"]["metrics"]
        values = {
            "schema": SCHEMA,
            "run_id": name,
            "attempt": 1,
            "status": outcome.status,
            "reason": outcome.reason,
            **identity,
            "env": self._env(),
            "parameters": outcome.parameters,
            "budget": {
                "epochs": len(outcome.history),
                "steps": outcome.steps,
                "skipped": outcome.skipped,
                "samples": outcome.samples,
            },
            "selection": {"epoch": outcome.selected[0], "score": outcome.selected[1]}
            if outcome.selected
            else None,
            "metrics": {
                task: {metric: scores.metrics[metric] for metric in metrics[task]}
                for task, scores in outcome.test.items()
            },
            "losses": {task: scores.loss for task, scores in outcome.test.items()},
            "history": outcome.history,
            "baselines": baselines,
        }
        return Record(values | {"comparability": comparability_key(values)})


def _heads(texts: Sequence[str]) -> dict[str, str]:
    """Return the spec of the head by task, from what ``--head`` was given."""
    found: dict[str, str] = {}
    for text in texts:
        specs = by_task(text)
        if specs is None:
            raise MtlbenchError(f"--head: expected task=spec, such as segmentation=unet, found {text!r}")
        for task, spec in specs.items():
            if task in found:
                raise MtlbenchError(f"--head names two heads for the task '{task}': {found[task]} and {spec}")
            found[task] = spec
    return found


def _chosen(text: str, task: Task) -> HeadChoice:
    try:
        return choose_head(text, task.output)
    except MtlbenchError as error:
        raise MtlbenchError(f"--head {task.name}={text}: {error}") from None


@cache
def code_digest(*modules: str) -> str:
    """Return a hash of the source of these modules and of what they import; read once in a process."""
    return hashlib.sha256(" ".join(map(source_digest, modules)).encode()).hexdigest()[:16]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def describe_processor() -> str:
    """Return maker and instruction set of the CPU: what decides which kernels run, and so the last digits."""
    try:
        found = re.search(r"^vendor_id\s*:\s*(\S+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    maker = found[1] if found else platform.processor() or platform.machine()
    return f"{maker} {torch.backends.cpu.get_cpu_capability()}"


def describe_device(device: torch.device) -> str:
    """Return the device in words that hold on another machine of the same kind."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type} ({platform.machine()})"
