"""Sweeps as users run them: processes that die, interruptions, two sweeps at once."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtlbench.results import Store
from mtlbench.results.verify import verify

DEADLY = Path(__file__).parents[1] / "plugins" / "deadly.py"


@pytest.fixture
def command(tmp_path: Path, tiny_plugin: Path) -> list[str]:
    return [
        sys.executable, "-m", "mtlbench", "sweep", "--data", "tiny", "--plugin", str(tiny_plugin),
        "--plugin", str(DEADLY), "--results", str(tmp_path / "results"), "--data-dir", str(tmp_path / "data"),
    ]  # fmt: skip


def start(command: list[str], *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )


def call(command: list[str], *arguments: str) -> tuple[int, str, str]:
    process = start(command, *arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_a_grid_is_trained_once_and_answered_with_its_table(command: list[str], tmp_path: Path) -> None:
    grid = tmp_path / "grid.toml"
    grid.write_text('arch = ["hps"]\nweight = ["ew", "mgda", "ew[no=1]"]\nepochs = 1\nseeds = [0, 1]\n')
    code, out, _ = call(command, str(grid), "--dry-run")
    assert code == 0
    assert "10 runs, 6 of them single-task baselines; 0 are there already, 10 to train" in out
    assert "left out: hps+ew[no=1]: " in out
    assert re.search(r"about \d+ minutes on this machine", out)
    code, out, err = call(command, str(grid), "--jobs", "2")
    assert code == 0, err
    assert len(Store(tmp_path / "results").paths()) == 10
    assert "hps+mgda" in out
    assert "single-task" in out
    assert "[10/10] done" in err
    code, again, err = call(command, str(grid), "--jobs", "2")
    assert code == 0
    assert again == out
    assert "10 of them there already" in err
    assert not list(verify(Store(tmp_path / "results")))


def test_a_process_that_dies_is_started_once_more_and_then_recorded(
    command: list[str], tmp_path: Path
) -> None:
    once = f"deadly[once={tmp_path / 'died'}]"
    arguments = ("--weight", f"{once},deadly,ew", "--epochs", "2", "--tasks", "mask", "--no-baseline")
    code, out, err = call(command, *arguments)
    assert code == 3
    assert err.count("killed by signal 9; it is started once more") == 2
    assert "its process died 2 times: killed by signal 9" in err
    assert "its process died 2 times: killed by signal 9" in out
    records = {record.values["spec"]["weighting"]["parameters"].get("once"): record
               for record in Store(tmp_path / "results").records()}  # fmt: skip
    assert records[""].status == "failed"
    assert records[str(tmp_path / "died")].status == "ok"
    assert records[None].status == "ok"
    assert not list(verify(Store(tmp_path / "results")))
    code, _, err = call(command, *arguments)  # nothing is left to train, and what failed is told again
    assert code == 3
    assert "1 of 3 runs ended without a result" in err


def test_an_interrupted_sweep_goes_on_where_it_was(command: list[str], tmp_path: Path) -> None:
    arguments = ("--weight", "ew,mgda", "--epochs", "40", "--seeds", "0-2", "--no-baseline", "--jobs", "2")
    process = start(command, *arguments)
    results = tmp_path / "results"
    while not (list(results.glob(".checkpoints/*.pt")) or process.poll() is not None):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "the same command goes on where it was" in err
    assert len(Store(results).paths()) < 6
    code, _, err = call(command, *arguments)
    assert code == 0, err
    whole = tmp_path / "whole"
    code, _, err = call(command, *arguments, "--results", str(whole))
    assert code == 0, err
    pieces, straight = ({p.name: p.read_bytes() for p in Store(root).paths()} for root in (results, whole))
    assert pieces == straight
    assert len(pieces) == 6


def test_two_sweeps_on_one_store_with_random_kills(command: list[str], tmp_path: Path) -> None:
    """Eight workers; some of them and then a whole sweep are killed: nothing is torn, lost or doubled."""
    arguments = ("--weight", "ew,rlw,uw", "--epochs", "4", "--seeds", "0-2", "--jobs", "4")
    sweeps = [start(command, *arguments) for _ in range(2)]
    draw = random.Random(0)
    results = tmp_path / "results"
    while not any(results.glob("*/*/*.json")) and any(sweep.poll() is None for sweep in sweeps):
        time.sleep(0.05)
    for _ in range(3):
        workers = _children(sweeps[0].pid) + _children(sweeps[1].pid)
        if workers:
            os.kill(draw.choice(workers), signal.SIGKILL)
        time.sleep(0.3)
    sweeps[0].kill()
    for sweep in sweeps:
        sweep.communicate(timeout=300)
    code, _, err = call(command, *arguments)
    store = Store(results)
    assert len(store.paths()) == 9 + 9, err
    faults = [fault for _, fault in verify(store)]
    assert faults == []
    # A run whose worker was killed twice may be recorded as failed; every other came out.
    failed = [record for record in store.records() if record.status != "ok"]
    assert all("killed by signal 9" in record.values["reason"] for record in failed)
    assert code == (3 if failed else 0)
    assert not list(results.rglob(".*.tmp"))


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []
