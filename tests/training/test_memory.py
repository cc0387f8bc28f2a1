"""Freed memory is kept for the next tensors, and no run is charged with what an earlier one freed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import re
import torch
from pathlib import Path
from mtlbench.training.memory import PeakMemory, keep_freed_memory

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3

keep_freed_memory()
before = resident()
blocks = [torch.ones(1_000_000) for _ in range(16)]
del blocks
print(resident() - before, PeakMemory(torch.device("cpu")).read() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to do")
@pytest.mark.parametrize("chosen", [False, True])
def test_freed_memory_is_kept_until_the_next_run(chosen: bool) -> None:
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("MALLOC_", "GLIBC_"))}
    if chosen:
        environment["MALLOC_TRIM_THRESHOLD_"] = "131072"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    kept, charged = map(float, done.stdout.split())
    assert (kept < 20) if chosen else (kept > 60), kept
    assert charged < 20
