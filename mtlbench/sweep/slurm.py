"""Runs as jobs of a Slurm cluster, whose nodes share the results folder with this machine."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.core import PicklingExecutor
from submitit.core.job_environment import JobEnvironment
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmInfoWatcher

from mtlbench.errors import MtlbenchError, did_you_mean
from mtlbench.spec import Spec, split
from mtlbench.sweep import worker
from mtlbench.sweep.executor import Executor
from mtlbench.sweep.state import State

FOLDER = ".slurm"
"""Where the logs of jobs are kept inside a store, a folder for each run, until it has come out."""

TICK = 0.2
"""Seconds between two looks at whether the user wants to stop."""

POLL = 2.0
"""Seconds between two looks at the jobs' files."""

RARELY = 30
"""Seconds between two looks at the queue, for all jobs at once; fewer at first, after a job was added."""

LAG = 30.0
"""Seconds that a shared disk may need to show what a job has left, and that a queue is left alone that took
no more jobs."""

GONE = "GONE"
"""The state of a job that the queue does not list."""


class _Watcher(SlurmInfoWatcher):
    """Asks the queue which jobs it has. Accounting, which submitit would ask, is not kept everywhere."""

    def _make_command(self) -> list[str] | None:
        return ["squeue", "--me", "--noheader", "--format=%i|%T"]

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        lines = (string if isinstance(string, str) else string.decode()).splitlines()
        listed = dict(line.strip().split("|", 1) for line in lines if "|" in line)
        words = {name: "PENDING" if word == "PENDING" else "RUNNING" for name, word in listed.items()}
        return {name: {"State": words.get(name, GONE)} for name in self._registered}


class _Job(submitit.SlurmJob[str | None]):
    watcher = _Watcher(delay_s=RARELY)

    @property
    def state(self) -> str:
        """What the queue says now; where the job is gone, how it ended, which is known for some minutes."""
        found: str = self.watcher.get_state(self.job_id)
        if found != GONE:
            return found
        command = ["squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={self.job_id}"]
        told = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        return told[0] if told else GONE


class Queue(submitit.SlurmExecutor):
    """The queue of this cluster."""

    job_class = _Job


def train(settings: str) -> str | None:
    """Train one run in the job where this is called, and return why it was stopped, if it was.

    The job's standard output, its log, takes the events, a line of JSON each. Slurm warns a job before its
    time is up or it is preempted; then the run keeps a checkpoint, and the sweep decides what comes next.
    """
    stop = threading.Event()
    for name in ("TERM", JobEnvironment.USR_SIG):
        signal.signal(signal.Signals[f"SIG{name}"], lambda *_: stop.set())
    log, sys.stdout = sys.stdout, sys.stderr  # what a plugin prints is no event

    def say(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=log, flush=True)

    return worker.train(worker.load(settings), say, stop.is_set)


def parameters(text: str, cpus: int, gpus: float) -> dict[str, Any]:
    """Return what ``sbatch`` is asked for, with the names of submitit.

    text: such as ``partition=gpu,time=120``. cpus, gpus: of a job, unless ``text`` says otherwise. A job
    without a time takes that of its partition.
    """
    known = submitit.SlurmExecutor._valid_parameters()
    if gpus != int(gpus):
        raise MtlbenchError(f"--gpus-per-run: a job takes whole GPUs, found {gpus:g}")
    found: dict[str, Any] = {"job_name": "mtlbench", "time": None, "cpus_per_task": cpus}
    if gpus:
        found["gpus_per_node"] = int(gpus)
    for name, value in Spec.parse(f"slurm[{text}]").arguments:
        if name not in known:
            raise MtlbenchError(
                f"--slurm: unknown parameter '{name}'.{did_you_mean(name, known)} There are:"
                f" {', '.join(sorted(known))}"
            )
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    if text.startswith("["):
        return [_value(part) for part in split(text[1:-1])]
    if text[0] in "'\"":
        return text[1:-1].replace(text[0] * 2, text[0])
    return int(text) if text.isdigit() else {"true": True, "false": False}.get(text, text)


@dataclass
class _Attempt:
    """A job of the queue: how many bytes of its log were read, and since when it seems to be over."""

    state: State
    job: submitit.Job[str | None]
    read: int = 0
    silent: float | None = None


class Slurm(Executor):
    """Trains in jobs of the queue; stopped, those that have not started are cancelled and the others go on.

    folder: of the store. jobs: how many there are in the queue at most. parameters: see `parameters`. kind:
    another executor of submitit, such as its local one.
    """

    def __init__(
        self,
        folder: Path,
        jobs: int,
        parameters: Mapping[str, Any],
        kind: type[PicklingExecutor] = Queue,
    ) -> None:
        self.folder, self.jobs, self.parameters, self.kind = folder / FOLDER, jobs, parameters, kind
        if kind.affinity() < 0:
            raise MtlbenchError("--executor slurm: there is no Slurm here; start it where 'srun' works")
        logging.getLogger("submitit").setLevel(logging.CRITICAL)  # it would write into our answer
        self.attempts: list[_Attempt] = []
        self.accepted = False
        self.refused: list[State] = []
        self.ended: set[str] = set()
        self.next = self.again = 0.0

    def room(self) -> bool:
        """Say whether the queue may take another job."""
        return len(self.attempts) < self.jobs and time.monotonic() >= self.again

    def adopt(self, state: State) -> bool:
        """Take over the job that a sweep that was killed or stopped has left in the queue."""
        folder = self.folder / state.job.run_id
        for file in folder.glob("*_submitted.pkl"):
            job: submitit.Job[str | None] = self.kind.job_class(folder, file.name.partition("_")[0])
            if job.job_id in self.ended or job.paths.result_pickle.exists():
                continue
            if job.state in ("PENDING", "RUNNING"):
                self._watch(state, job)
                return True
        return False

    def start(self, state: State) -> None:
        """Put a job into the queue."""
        try:
            job = self._submit(self.folder / state.job.run_id, state)
        except (FailedJobError, FailedSubmissionError) as error:
            why = str(error).strip().splitlines()[-1:] or ["no reason given"]
            if not self.accepted:
                raise MtlbenchError(f"--executor slurm: the queue takes no job: {why[0]}") from None
            self.notice(f"the queue takes no more jobs now: {why[0]}")
            self.again = time.monotonic() + LAG
            self.refused.append(state)
            return
        self.accepted = True
        self._watch(state, job)

    def poll(self) -> Iterator[tuple[State, str | None]]:
        """Read the logs and see which jobs are over."""
        time.sleep(TICK)
        while self.refused:
            yield self.refused.pop(), None
        if time.monotonic() < self.next:
            return
        for attempt in list(self.attempts):
            over = self._over(attempt)
            self._hear(attempt)
            if over:
                self.attempts.remove(attempt)
                self.ended.add(attempt.job.job_id)
                yield attempt.state, self._death(attempt)
        self.next = time.monotonic() + POLL

    def stop(self) -> None:
        """Cancel what has not started; what runs leaves its records by itself."""
        going = []
        for attempt in self.attempts:
            self._hear(attempt)
            if attempt.state.state == "queued":
                attempt.job.cancel(check=False)
            else:
                going.append(attempt.job.job_id)
        if going:
            self.notice(
                "jobs go on that have started, and leave their records; to stop them: scancel "
                + " ".join(going)
            )

    def _submit(self, folder: Path, state: State) -> submitit.Job[str | None]:
        executor = self.kind(folder)
        executor.update_parameters(**self.parameters)
        with contextlib.redirect_stderr(io.StringIO()):  # what sbatch says is in the error
            return executor.submit(train, worker.dump(state.job.config))

    def _watch(self, state: State, job: submitit.Job[str | None]) -> None:
        state.state = "queued"  # until it says that it has started
        self.attempts.append(_Attempt(state, job))

    def _hear(self, attempt: _Attempt) -> None:
        """Read on in the log; its last line may not be whole yet."""
        with contextlib.suppress(FileNotFoundError), attempt.job.paths.stdout.open("rb") as file:
            file.seek(attempt.read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                attempt.read += len(line)
                if line.startswith(b'{"event"'):
                    attempt.state.hear(json.loads(line), self.notice)

    def _over(self, attempt: _Attempt) -> bool:
        """Say whether a job has ended; the queue may know before its result is seen here."""
        job = attempt.job
        if job.paths.result_pickle.exists():
            return True
        if not job.done():
            return False
        attempt.silent = attempt.silent or time.monotonic()
        return job.state != "COMPLETED" or time.monotonic() - attempt.silent > LAG

    def _death(self, attempt: _Attempt) -> str | None:
        """Say how a job died, and leave its log to be read then; None where it came to its end."""
        job, state = attempt.job, attempt.state
        death: str | None = None
        if job.paths.result_pickle.exists() and job.exception() is None:
            death = job.result()
        elif not state.look():
            death = f"its job ended as {job.state}"
            with contextlib.suppress(FileNotFoundError), job.paths.stderr.open("rb") as file:
                death += worker.last_line(file)
        if death is not None:
            self.notice(f"{state.job.run.label}: the log of its job is {job.paths.stderr}")
        elif state.look() and state.state == "done":
            shutil.rmtree(job.paths.folder, ignore_errors=True)
        return death
