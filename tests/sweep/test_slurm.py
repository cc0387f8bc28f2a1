"""Runs as jobs of a queue: submitit's local executor, and a queue of our own behind Slurm's commands."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mtlbench.config import RunConfig
from mtlbench.errors import MtlbenchError
from mtlbench.registry import Registry
from mtlbench.results import Store
from mtlbench.results.verify import verify
from mtlbench.sweep.grid import plan

submitit = pytest.importorskip("submitit", reason="mtlbench[slurm] is not installed")

PLUGINS = Path(__file__).parents[1] / "plugins"


def test_what_sbatch_is_asked_for() -> None:
    from mtlbench.sweep.slurm import parameters

    assert parameters("", 1, 0.0) == {"job_name": "mtlbench", "time": None, "cpus_per_task": 1}
    found = parameters("partition=gpu,time=120,exclude=n[1-3],setup=['module load a,b',hostname]", 4, 2.0)
    assert found["gpus_per_node"] == 2
    assert found["cpus_per_task"] == 4
    assert found["time"] == 120
    assert found["exclude"] == "n[1-3]"
    assert found["setup"] == ["module load a,b", "hostname"]
    assert parameters("cpus_per_task=8,exclusive=true", 1, 0.0)["cpus_per_task"] == 8
    with pytest.raises(
        MtlbenchError, match=r"--slurm: unknown parameter 'partion'. Did you mean 'partition'"
    ):
        parameters("partion=gpu", 1, 0.0)
    with pytest.raises(MtlbenchError, match=r"--gpus-per-run: a job takes whole GPUs, found 0\.5"):
        parameters("", 1, 0.5)


def test_no_cluster_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtlbench.sweep.slurm import Slurm

    monkeypatch.setenv("PATH", "")
    with pytest.raises(MtlbenchError, match="--executor slurm: there is no Slurm here"):
        Slurm(tmp_path, 1, {})


def test_jobs_that_train_die_or_stand_in_the_store(
    tmp_path: Path, tiny_plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With submitit's local executor: a death is tried again from its checkpoint, two are a failed run."""
    from mtlbench.sweep.slurm import Slurm

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    files = (tiny_plugin, PLUGINS / "deadly.py")
    weights = ("ew", "deadly", f"deadly[once={tmp_path / 'died'}]")
    configs = [
        RunConfig(
            data="tiny", weight=weight, epochs=2, batch_size=12, tasks=("mask",), device="cpu",
            baseline=False, results=tmp_path / "results", data_dir=tmp_path, plugin=files,
        )
        for weight in weights
    ]  # fmt: skip
    found = plan(configs, Registry(files))
    lines: list[str] = []
    with Slurm(tmp_path / "results", 3, {"timeout_min": 2}, submitit.LocalExecutor) as execute:
        states = execute(found.jobs, watch=lambda states: None, notice=lines.append, stopped=lambda: False)
    assert [state.state for state in states] == ["done", "failed", "done"]
    assert states[1].reason is not None
    assert states[1].reason.startswith("its process died 2 times: its job ended")
    assert sum("it is started once more" in line for line in lines) == 2
    assert sum(": the log of its job is " in line for line in lines) == 3
    store = Store(tmp_path / "results")
    assert len(store.paths()) == 3
    assert not list(verify(store))
    assert all(store.cost(record) is not None for record in store.records())
    # Of what came out no log is left; those of failed runs can be read.
    (folder,) = (tmp_path / "results" / ".slurm").iterdir()
    assert folder.name == states[1].job.run_id
    assert all(any(str(log) in line for line in lines) for log in folder.glob("*.err"))


QUEUE = """#!{python}
import os, pathlib, re, signal, subprocess, sys
here, command, words = pathlib.Path({folder!r}), pathlib.Path(sys.argv[0]).name, sys.argv[1:]
running = {{p.name: p for p in here.glob("[0-9]*")}}
def listed():
    for name, file in sorted(running.items()):
        pid = file.read_text()
        if pid == "wait":
            yield name, "PENDING"
        elif pathlib.Path("/proc", pid).exists():
            yield name, "RUNNING"
if command == "sbatch":
    if (here / "refuse").exists():
        sys.exit("sbatch: error: invalid partition specified: gpu")
    name = str(len(running) + 1)
    if (here / "full").exists():
        (here / name).write_text("wait")
    else:
        none = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        os.environ["SLURM_JOB_ID"] = name
        job = subprocess.Popen(["bash", words[-1]], start_new_session=True, **none)
        (here / name).write_text(str(job.pid))
    print("Submitted batch job " + name)
elif command == "srun":
    out, err = (open(w.replace("%j", os.environ["SLURM_JOB_ID"]).replace("%t", "0"), "a")
                for w in (words[words.index("--output") + 1], words[words.index("--error") + 1]))
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    rest = words[words.index("--error") + 2 :]
    os.execvp(rest[0], rest)
elif command == "squeue" and "--me" in words:
    for name, word in listed():
        print(name + "|" + word)
elif command == "squeue":
    print("NODE_FAIL")
elif command == "scancel":
    (here / "cancelled").open("a").write(words[-1] + chr(10))
    running[words[-1]].write_text("0")
"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands, in front of a queue that has room unless its folder has a file ``full``."""
    folder = tmp_path / "queue"
    folder.mkdir()
    for name in ("sbatch", "srun", "squeue", "scancel"):
        file = folder / name
        file.write_text(QUEUE.format(python=sys.executable, folder=str(folder)))
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder


@pytest.fixture
def start(queue: Path, tmp_path: Path, tiny_plugin: Path) -> Callable[..., subprocess.Popen[str]]:
    def begin(*arguments: str) -> subprocess.Popen[str]:
        command = [
            sys.executable, "-m", "mtlbench", "sweep", "--executor", "slurm", "--data", "tiny", "--plugin",
            str(tiny_plugin), "--plugin", str(PLUGINS / "slow.py"), "--results", str(tmp_path / "results"),
            "--data-dir", str(tmp_path), "--device", "cpu", "--epochs", "1", "--batch-size", "12", "--tasks",
            "mask", "--no-baseline",
        ]  # fmt: skip
        return subprocess.Popen(
            [*command, *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    return begin


def until(found: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait for what a sweep that goes on brings about; where it does not, its words say why."""
    deadline = time.monotonic() + 120
    while not found() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if process.poll() is not None or not found():
        process.kill()
        pytest.fail("".join(process.communicate()))


def test_an_interrupted_sweep_leaves_what_runs_and_goes_on(
    queue: Path, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    weights = ("--weight", f"slow[marks={marks}],ew", "--slurm", "partition=cpu,time=10")
    first = start(*weights, "--jobs", "1")
    until(lambda: list(marks.iterdir()), first)  # a job trains, and keeps on
    first.kill()
    _, err = first.communicate()
    assert not (queue / "2").exists(), err
    (queue / "full").touch()
    second = start(*weights)
    until((queue / "2").exists, second)  # what runs is left alone, the other run waits in the queue
    second.send_signal(signal.SIGINT)
    _, err = second.communicate(timeout=120)
    assert second.returncode == 130, err
    assert "the same command goes on where it was" in err
    assert (queue / "cancelled").read_text() == "2\n"
    (queue / "full").unlink()
    third = start(*weights)
    until((queue / "3").exists, third)
    (marks / "go").touch()
    out, err = third.communicate(timeout=240)
    assert third.returncode == 0, err
    assert "hps+ew" in out
    store = Store(tmp_path / "results")
    assert len(store.paths()) == 2
    assert not list(verify(store))
    assert len([mark for mark in marks.iterdir() if mark.name != "go"]) == 1  # it was trained once
    assert not (queue / "4").exists()


def test_a_queue_that_takes_nothing_is_one_clear_line(
    queue: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    (queue / "refuse").touch()
    process = start("--weight", "ew", "--slurm", "partition=gpu")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert re.search(
        r"error: --executor slurm: the queue takes no job: sbatch: error: invalid partition", err
    ), err
