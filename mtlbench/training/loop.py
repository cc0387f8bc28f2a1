"""The training loop: one run, from its config to its outcome, whether it is interrupted or not."""

from __future__ import annotations

import copy
import math
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlbench.contracts import Batch, Dataset, Split, Task, labelled
from mtlbench.data.augment import Augment
from mtlbench.errors import Interrupted, MtlbenchError, RunFailedError
from mtlbench.gradients import Batches, Step
from mtlbench.parallel import ALONE, Ranks, synchronise_batch_norm
from mtlbench.training import checkpoint as checkpoints
from mtlbench.training import conflicts
from mtlbench.training.ahead import ahead
from mtlbench.training.augmented import augmented, build_augment
from mtlbench.training.compiled import compiling
from mtlbench.training.evaluate import Scores, evaluate, selection_score, unlabelled
from mtlbench.training.health import Health
from mtlbench.training.memory import PeakMemory
from mtlbench.training.model import Run, build, build_engine, choose_tasks
from mtlbench.training.optim import build_optimizer, learning_rate
from mtlbench.training.profile import Clock, Profile, profiled
from mtlbench.training.report import Reporter
from mtlbench.training.seeds import derive, order


@dataclass
class Outcome:
    """What a run came to.

    status: ``ok``, ``diverged`` (a loss was not finite) or ``failed`` (a solver gave up); reason: why it is
    not ok. test: scores of the selected epoch on the test split, empty unless ok. selected: (epoch, score)
    of the selection rule. parameters: numbers of trainable parameters by part. skipped: steps that were not
    made, because a gradient left the range of half precision. model: the selected state of
    the model, on the CPU, empty unless ok. The rest is measured. profile: where the time went since the start
    or the resumption, if that was asked for.
    """

    status: str
    reason: str | None
    test: dict[str, Scores]
    history: list[dict[str, Any]]
    selected: tuple[int, float] | None
    parameters: dict[str, int]
    skipped: int
    model: dict[str, Tensor]
    steps: int
    samples: int
    seconds: float
    step_ms: float
    peak_mb: float
    profile: Profile | None = None


@dataclass
class _Progress:
    """Where a run stands; plain numbers and a tensor, so that it goes into the checkpoint as it is."""

    epoch: int = 0
    step: int = 0
    steps: int = 0
    skipped: int = 0
    samples: int = 0
    since_best: int = 0
    best_epoch: int = 0
    best_score: float = math.inf
    seconds: float = 0.0
    peak_mb: float = 0.0
    losses: list[list[float]] = field(default_factory=list)
    weights: list[list[float]] = field(default_factory=list)
    penalties: list[float] = field(default_factory=list)
    conflicts: Tensor | None = None
    within: list[dict[str, Any]] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)


class _Diverged(Exception):
    """A loss is no longer finite."""


class _Loader:
    """The batches of one epoch, in the order that the seed gives, from any step on.

    A step takes as many batches as the weighting needs, one after another, so that an epoch is one pass over
    the data for every method. Batches that do not fill a last step are left out of their epoch.

    A batch is cut into micro-batches and each of these into the shares of the ranks, all of them contiguous;
    so what is drawn does not depend on how many there are.
    """

    def __init__(
        self,
        split: Split | Mapping[str, Split],
        tasks: list[str],
        run: Run,
        batches: int,
        ranks: Ranks,
        augment: Augment | None = None,
    ) -> None:
        self.parts = {t: split[t] for t in tasks} if isinstance(split, Mapping) else {"": split}
        self.augment = augment
        self.joint = not isinstance(split, Mapping)
        self.run = run
        self.size: int = run.protocol["batch_size"]
        self.batches, self.ranks = batches, ranks
        self.steps = max(max(self._batches(len(part)) for part in self.parts.values()) // batches, 1)

    def _batches(self, samples: int) -> int:
        """Batch normalisation cannot work on one sample, so a last batch of one is left out of its epoch."""
        whole, rest = divmod(samples, self.size)
        return max(whole + (rest > 1), 1)

    def epoch(self, epoch: int, start: int) -> Iterator[tuple[list[list[Batches]], int]]:
        """Yield the batches of each step from step ``start`` on, each in parts, and the samples of all ranks.

        A task with fewer samples begins anew after its last; so do all where one step takes more than all.
        """
        orders = {
            name: torch.split(order(self.run.seed, epoch, len(part), name), self.size)
            for name, part in self.parts.items()
        }
        steps = (self._drawn(step, orders) for step in range(start, self.steps))
        parts = {
            name: augmented(part, self.augment, self.run.seed, epoch, name)
            for name, part in self.parts.items()
        }
        fetch = partial(self._step, parts)
        if not any(part.streamed for part in parts.values()):
            yield from map(fetch, steps)
        else:
            yield from ahead(fetch, steps, self.run.workers)

    def _drawn(self, step: int, orders: Mapping[str, Sequence[Tensor]]) -> list[dict[str, Tensor]]:
        """Return which samples the batches of a step are made of."""
        return [
            {name: orders[name][n % self._batches(len(part))] for name, part in self.parts.items()}
            for n in range(step * self.batches, (step + 1) * self.batches)
        ]

    def _step(
        self, parts: Mapping[str, Split], drawn: Sequence[Mapping[str, Tensor]]
    ) -> tuple[list[list[Batches]], int]:
        """Return the batches of a step and the samples of all ranks."""
        samples = sum(len(indices) for batch in drawn for indices in batch.values())
        return [self._fetch(parts, batch) for batch in drawn], samples

    def _fetch(self, parts: Mapping[str, Split], drawn: Mapping[str, Tensor]) -> list[Batches]:
        """Return this rank's share of every micro-batch."""
        micro = {name: _cut(indices, self.run.protocol["accumulate"]) for name, indices in drawn.items()}
        found: list[Batches] = []
        for number in range(max(map(len, micro.values()))):
            part = {
                name: self._share(parts[name], pieces[number] if number < len(pieces) else pieces[0][:0])
                for name, pieces in micro.items()
            }
            found.append(part[""] if self.joint else part)
        return found

    def _share(self, split: Split, indices: Tensor) -> Batch:
        shares = _cut(indices, self.ranks.size)
        if self.ranks.rank < len(shares) and len(indices):
            return split.fetch(shares[self.ranks.rank])
        one = split.fetch(torch.zeros(1, dtype=torch.int64))  # nothing, in the shape of something
        return Batch(one.inputs[:0], {name: target[:0] for name, target in one.targets.items()})


def _cut(indices: Tensor, count: int) -> Sequence[Tensor]:
    """Cut into ``count`` pieces, or fewer, since batch normalisation cannot work on one sample."""
    return torch.tensor_split(indices, min(count, max(len(indices) // 2, 1)))


def train(
    run: Run,
    dataset: Dataset,
    device: torch.device,
    reporter: Reporter,
    checkpoint: Path | None = None,
    resume: bool = False,
    stopped: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
    profile: bool = False,
) -> Outcome:
    """Train, select and test one run.

    checkpoint: where to keep the state, after every epoch and when ``stopped()`` turns true (then
    `Interrupted` is raised). resume: go on from there if it exists; the outcome is the same, bit for bit, as
    without the interruption. ranks: the processes that train together; all must call this, and the first
    writes the checkpoint. profile: measure where the time goes. Raises `MtlbenchError` for a combination that
    cannot work, before training.
    """
    loop = _Loop(run, dataset, device, reporter, checkpoint, resume, stopped, ranks)
    with ExitStack() as listening:
        clock = listening.enter_context(profiled(loop.engine, device)) if profile else None
        return loop.train(clock)


class _Loop:
    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        device: torch.device,
        reporter: Reporter,
        checkpoint: Path | None,
        resume: bool,
        stopped: Callable[[], bool],
        ranks: Ranks,
    ) -> None:
        self.run, self.dataset, self.device, self.ranks = run, dataset, device, ranks
        self.reporter, self.checkpoint, self.stopped = reporter, checkpoint, stopped
        self.peak = PeakMemory(device)
        self.tasks = choose_tasks(dataset, run.tasks)
        self.names = [task.name for task in self.tasks]
        seed_everything(derive(run.seed, "training"))
        self.model, self.weighting = build(run, dataset)
        self.model.to(device)
        # What computes on a T x T matrix does it on the CPU, so its state stays there.
        self.side = torch.device("cpu") if self.weighting.needs.small else device
        self.weighting.to(self.side)
        ranks.overwrite([*self.model.state_dict().values(), *self.weighting.parameters()])
        if run.sync_bn:
            synchronise_batch_norm(self.model, ranks)
        if not ranks.first:  # dropout masks must differ
            seed_everything(derive(run.seed, "training", "process", ranks.rank))
        self.engine = build_engine(run, dataset, self.model, self.weighting, ranks)
        self.optimizer = build_optimizer(run.settings, self.model, self.weighting)
        self.health = Health(self.model, self.optimizer)
        augment = build_augment(run.protocol, dataset, self.tasks)
        self.loader = _Loader(
            dataset.split("train"), self.names, run, self.weighting.needs.batches, ranks, augment
        )
        self.partial = dataset.partial or (augment is not None and augment.cutting)
        self.progress = _Progress()
        self.best: dict[str, Tensor] = {}
        if resume and checkpoint is not None and ranks.from_first(checkpoint.exists):
            with checkpoints.readable(checkpoint):
                self._restore(ranks.from_first(lambda: checkpoints.load(checkpoint)), checkpoint)

    def train(self, clock: Clock | None = None) -> Outcome:
        protocol, progress = self.run.protocol, self.progress
        self.reporter.started(self.run.label, protocol["epochs"], self.loader.steps, progress.epoch)
        status, reason, test = "ok", None, {}
        began, before, steps = time.perf_counter(), progress.seconds, progress.steps
        try:
            while progress.epoch < protocol["epochs"] and not self._out_of_patience():
                with compiling(self.stopped):
                    self._epoch()
                progress.seconds = before + time.perf_counter() - began
                self._save()
            self.model.load_state_dict(self.best)
            with compiling(self.stopped):
                test = self._evaluate("test")
            bad = [n for n, s in test.items() if s.loss is not None and not math.isfinite(s.loss)]
            if bad:
                raise _Diverged(f"the test loss of {', '.join(bad)} is not finite")
        except _Diverged as error:
            status, reason, test = "diverged", str(error), {}
        except RunFailedError as error:
            status, reason = "failed", str(error)
        except Interrupted:
            progress.seconds = before + time.perf_counter() - began
            self._save()
            raise
        self.reporter.finished(status, reason)
        return Outcome(
            status,
            reason,
            test,
            progress.history,
            (progress.best_epoch, progress.best_score) if progress.best_epoch else None,
            self._count_parameters(),
            progress.skipped,
            {name: value.cpu() for name, value in self.best.items()} if status == "ok" else {},
            progress.steps,
            progress.samples,
            before + time.perf_counter() - began,
            statistics.median(progress.step_ms) if progress.step_ms else 0.0,
            max(progress.peak_mb, self.peak.read()),
            None if clock is None else clock.stop(progress.steps - steps),
        )

    def _out_of_patience(self) -> bool:
        patience = int(self.run.protocol["patience"])
        return 0 < patience <= self.progress.since_best

    def _epoch(self) -> None:
        progress = self.progress
        rate = learning_rate(self.run.settings, progress.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        self.weighting.train()
        self.model.architecture.start_epoch(progress.epoch, self.run.protocol["epochs"])
        mark = self.engine.mark
        mark("data")
        for batches, samples in self.loader.epoch(progress.epoch, progress.step):
            mark("rest")
            if self.ranks.any(self.stopped()):
                raise Interrupted("stopped")
            began = time.perf_counter()
            progress.samples += samples
            self._step(batches)
            progress.step_ms.append((time.perf_counter() - began) * 1e3)
            progress.step += 1
            self._look()
            mark("data")
        mark("keep")
        losses = self._means(progress.losses)
        self.weighting.after_epoch(torch.tensor(losses, dtype=torch.float64).to(self.side))
        validation = self._evaluate("val")
        scored = {task.name: validation[task.name] for task in self._scored()}
        if unlabelled(scored) == list(scored):
            raise MtlbenchError(f"{self.dataset.title}: no task has a label in the val split to select by")
        score = selection_score(scored)
        if not math.isfinite(score):
            raise _Diverged(f"the validation loss is not finite after epoch {progress.epoch + 1}")
        if progress.steps and (fault := self.health.fault()):
            raise RunFailedError(f"after epoch {progress.epoch + 1} {fault}")
        row = {
            "epoch": progress.epoch + 1,
            "lr": rate,
            "train": {name: _finite(loss) for name, loss in zip(self.names, losses, strict=True)},
            "val": _by_task(validation),
            "weights": dict(zip(self.names, map(_finite, self._means(progress.weights)), strict=True))
            if progress.weights
            else None,
            "penalty": _finite(math.fsum(progress.penalties) / len(progress.penalties))
            if progress.penalties
            else None,
            "gradients": conflicts.summary(progress.conflicts, self.names),
            "score": score,
            **({"within": progress.within} if self.run.validate_every else {}),
        }
        progress.history.append(row)
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.losses, progress.weights, progress.penalties, progress.conflicts = [], [], [], None
        progress.within = []
        progress.since_best += 1
        if score < progress.best_score:
            progress.best_score, progress.best_epoch, progress.since_best = score, progress.epoch, 0
            self.best = copy.deepcopy(self.model.state_dict())
        self.reporter.epoch(row)

    def _look(self) -> None:
        """Score the validation split within an epoch, where that was asked for; its end is scored anyway."""
        every, step = self.run.validate_every, self.progress.step
        if every and step % every == 0 and step < self.loader.steps:
            at = self.progress.epoch + step / self.loader.steps
            self.progress.within.append({"epoch": at, "val": _by_task(self._evaluate("val"))})

    def _means(self, rows: list[list[float]]) -> list[float]:
        """Return each task's mean over the steps where it had a label; NaN where it had none."""
        columns = [[row[i] for row in rows if math.isfinite(row[i])] for i in range(len(self.names))]
        return [math.fsum(column) / len(column) if column else math.nan for column in columns]

    def _scored(self) -> list[Task]:
        """The tasks that select: all but auxiliary ones, unless there are no others."""
        return [task for task in self.tasks if not task.auxiliary] or list(self.tasks)

    def _step(self, fetched: Sequence[Sequence[Batches]]) -> None:
        progress = self.progress
        present = self._labelled(fetched) if self.partial else None
        if present is not None and not present:
            return
        mark = self.engine.mark
        mark("move")
        batch, *others = [[_placed(part, self.device) for part in parts] for parts in fetched]
        mark("optimiser")
        self.optimizer.zero_grad(set_to_none=True)
        rate = self.optimizer.param_groups[0]["lr"]
        probe = len(self.names) > 1 and self.run.probe > 0 and progress.steps % self.run.probe == 0
        mark("weighting")
        step: Step = self.engine.step(batch, present, probe=probe, others=others, rate=rate)
        mark("rest")
        seen = step.losses if present is None else step.losses[self.weighting.active]
        if not torch.isfinite(seen).all():
            active = [name for name in self.names if present is None or name in present]
            bad = [n for n, loss in zip(active, seen.tolist(), strict=True) if not math.isfinite(loss)]
            raise _Diverged(
                f"the loss of {', '.join(bad)} is not finite in epoch {progress.epoch + 1},"
                f" step {progress.step + 1}"
            )
        progress.losses.append(step.losses.tolist())
        if step.skipped:
            progress.skipped += 1
            return
        mark("optimiser")
        if self.run.protocol["clip"]:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.run.protocol["clip"])
        self.optimizer.step()
        mark("weighting")
        self.weighting.after_step(lambda: self._losses_again(batch, present))
        mark("rest")
        progress.steps += 1
        if step.weights is not None:
            progress.weights.append(step.weights.tolist())
        if step.penalty is not None:
            progress.penalties.append(float(step.penalty))
        if step.gram is not None and len(self.names) > 1:
            progress.conflicts = conflicts.add(progress.conflicts, step.gram)
        self.reporter.stepped(dict(zip(self.names, step.losses.tolist(), strict=True)))

    @torch.no_grad()
    def _losses_again(self, batch: Sequence[Batches], present: list[str] | None) -> Tensor:
        """Return the batch's losses after the step, float64 [T], as training sees them.

        In train mode, so that they compare with the losses before the step; what the extra forward does to
        running statistics is undone.
        """
        before = [buffer.clone() for buffer in self.model.buffers()]
        losses = self.engine.losses(batch, present)
        for buffer, value in zip(self.model.buffers(), before, strict=True):
            buffer.copy_(value)
        return torch.stack(list(losses.values())).cpu().double().to(self.side)

    def _labelled(self, batches: Sequence[Sequence[Batches]]) -> list[str]:
        """Return the tasks that have at least one label in each of the batches, on whatever rank."""
        counts = [
            float(
                sum(
                    bool(labelled((part if isinstance(part, Batch) else part[name]).targets[name]).any())
                    for part in parts
                )
            )
            for name in self.names
            for parts in batches
        ]
        found = torch.tensor(self.ranks.total(counts)).view(len(self.names), len(batches)).all(1)
        return [name for name, there in zip(self.names, found.tolist(), strict=True) if there]

    def _evaluate(self, split: Any) -> dict[str, Scores]:
        # Running statistics are the first rank's, which are also what is kept.
        self.engine.mark("evaluation")
        self.ranks.overwrite(list(self.model.buffers()))
        found = evaluate(
            self.model,
            self.tasks,
            self.dataset.split(split),
            self.run.protocol["batch_size"],
            self.device,
            self.ranks,
            self.engine.precision,
            self.run.workers,
            self.engine.mark,
        )
        self.engine.mark("keep")
        return found

    def _count_parameters(self) -> dict[str, int]:
        parts = {
            "architecture": self.model.architecture,
            "heads": self.model.heads,
            "weighting": self.weighting,
        }
        counts = {
            name: sum(p.numel() for p in part.parameters() if p.requires_grad) for name, part in parts.items()
        }
        return counts | {"total": sum(counts.values())}

    # ---- checkpoint ----------------------------------------------------------------------------------

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        self.progress.peak_mb = max(self.progress.peak_mb, self.peak.read())
        path, drawn = self.checkpoint, self.ranks.gather(self._random())
        self.ranks.from_first(
            lambda: checkpoints.save(
                path,
                {
                    "model": self.model.state_dict(),
                    "best": self.best,
                    "weighting": self.weighting.state_dict(),
                    "engine": self.engine.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "progress": vars(self.progress),
                    "random": drawn,
                },
            )
        )

    def _random(self) -> dict[str, Any]:
        """Return where the generators of this rank stand."""
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "numpy": _plain(np.random.get_state(legacy=True)),
            "python": _plain(random.getstate()),
        }

    def _restore(self, state: dict[str, Any], checkpoint: Path) -> None:
        if len(state["random"]) != self.ranks.size:
            raise MtlbenchError(
                f"checkpoint '{checkpoint}' was left by {len(state['random'])} processes, and these are"
                f" {self.ranks.size}: go on with as many, or leave --resume out"
            )
        self.model.load_state_dict(state["model"])
        self.best = state["best"]
        self.weighting.load_state_dict(state["weighting"])
        self.engine.load_state_dict(state["engine"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = _Progress(**state["progress"])
        drawn = state["random"][self.ranks.rank]
        torch.set_rng_state(drawn["torch"])
        if drawn["cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(drawn["cuda"], self.device)
        name, keys, *rest = drawn["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
        version, words, gauss = drawn["python"]
        random.setstate((version, tuple(words), gauss))


def seed_everything(seed: int) -> None:
    """Seed the generators that layers and plugins may draw from, and ask for deterministic kernels."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def pick_device(name: str, place: int | None = None) -> torch.device:
    """Return the device of ``--device``; ``auto`` prefers CUDA, then CPU. Raises `MtlbenchError`.

    place: number of this process on its machine, where several train together: which GPU it takes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and place is not None:
        name = f"cuda:{place}"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise MtlbenchError(f"'device' must be auto, cpu, cuda or cuda:N, found '{name}'")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise MtlbenchError(f"'device': '{name}' can't be used here: {first}") from None
    return device


def _placed(batch: Batches, device: torch.device) -> Batches:
    if isinstance(batch, Batch):
        return batch.to(device)
    return {name: part.to(device) for name, part in batch.items()}


def _plain(value: Any) -> Any:
    """Turn tuples and arrays into lists, which a checkpoint read with weights_only may hold."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _by_task(scores: Mapping[str, Scores]) -> dict[str, dict[str, float | None]]:
    """Return scores as the history has them."""
    return {name: {"loss": _finite(s.loss), **s.metrics} for name, s in scores.items()}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


__all__ = ["Outcome", "pick_device", "seed_everything", "train"]
