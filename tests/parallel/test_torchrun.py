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


def test_two_processes_leave_the_record_of_one(tmp_path: Path) -> None:
    flags = ("--epochs", "1", "--sync-bn", "--json")
    out, err = _run(2, tmp_path / "two", *flags)
    two = json.loads(out)  # one line, from one process
    assert err.count("ok after") == 1
    assert _record(tmp_path / "two")["run_id"] == two["run_id"]
    _run(1, tmp_path / "one", *flags)
    one = _record(tmp_path / "one")
    for key in one.keys() - {"env"}:
        assert not differences(two[key], one[key], 1e-4), key
    assert (one["env"]["processes"], two["env"]["processes"]) == (1, 2)
    assert not list((tmp_path / "two" / ".checkpoints").iterdir())


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
def test_a_killed_process_ends_the_others_and_resume_goes_on(tmp_path: Path) -> None:
    flags = ("--epochs", "40")
    started = _start(2, tmp_path / "killed", *flags)
    assert started.stderr is not None
    for line in started.stderr:
        if "epoch 2/40" in line:
            break
    os.kill(_children(started.pid)[-1], signal.SIGKILL)
    killed = time.monotonic()
    _, err = started.communicate(timeout=120)
    assert time.monotonic() - killed < 100
    assert started.returncode != 0
    assert err.count("error: process 0 lost another one (") == 1
    assert list((tmp_path / "killed" / ".checkpoints").glob("*.pt"))

    _run(2, tmp_path / "killed", *flags, "--resume")
    assert _record(tmp_path / "killed")["status"] == "ok"
    _run(2, tmp_path / "even", *flags)
    assert _record(tmp_path / "killed") == _record(tmp_path / "even")
