"""The command that users type: two processes leave one record, and end when one of them is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from worlds import differences

RUN = [
    "-m", "mtlbench", "run", "--data", "tiny", "--weight", "mgda", "--batch-size", "8", "--device", "cpu",
    "--no-baseline", "--plugin", str(Path(__file__).parents[1] / "plugins" / "tiny.py"),
]  # fmt: skip


def _start(processes: int, folder: Path, *flags: str) -> subprocess.Popen[str]:
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(several if processes > 1 else []), *RUN, "--results", str(folder), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def _run(processes: int, folder: Path, *flags: str) -> tuple[str, str]:
    out, err = _start(processes, folder, *flags).communicate(timeout=300)
    return out, err


def _record(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("tiny/*/*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


FLAGS = ("--epochs", "40", "--sync-bn")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The record that two processes leave, and what they say."""
    folder = tmp_path_factory.mktemp("two")
    out, err = _run(2, folder, *FLAGS, "--json")
    printed = json.loads(out)  # one line, from one process
    assert not list((folder / ".checkpoints").iterdir())
    found = _record(folder)
    assert printed["run_id"] == found["run_id"]
    return found, err


def test_two_processes_leave_the_record_of_one(two: tuple[dict[str, Any], str], tmp_path: Path) -> None:
    found, err = two
    assert err.count("ok after") == 1
    _run(1, tmp_path / "one", *FLAGS)
    one = _record(tmp_path / "one")
    for key in ("run_id", "status", "protocol", "data", "parameters", "budget", "comparability"):
        assert found[key] == one[key]
    # float32 and many steps amplify rounding; the first ones show that it is nothing else.
    assert not differences(found["history"][:3], one["history"][:3], 1e-4)
    assert (one["env"]["processes"], found["env"]["processes"]) == (1, 2)


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    out, err = _run(2, tmp_path / "x", "--arch", "hsp")
    assert out == ""
    assert err.count("unknown architecture 'hsp'") == 1
    assert "exitcode  : 2" in err  # of the processes, as torchrun reports it


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[1]) == parent:
            found.append(int(path.parent.name))
    return sorted(found)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_a_killed_process_ends_the_others_and_resume_goes_on(
    two: tuple[dict[str, Any], str], tmp_path: Path
) -> None:
    started = _start(2, tmp_path / "killed", *FLAGS)
    assert started.stderr is not None
    for line in started.stderr:
        if "epoch 2/40" in line:
            break
    os.kill(_children(started.pid)[-1], signal.SIGKILL)
    killed = time.monotonic()
    _, err = started.communicate(timeout=120)
    assert time.monotonic() - killed < 100
    assert started.returncode != 0
    assert err.count("error: process 0 lost another one (") == 1, err
    assert list((tmp_path / "killed" / ".checkpoints").glob("*.pt"))

    _run(2, tmp_path / "killed", *FLAGS, "--resume")
    assert _record(tmp_path / "killed") == two[0]
