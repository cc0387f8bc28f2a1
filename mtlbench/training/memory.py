"""Peak memory of one run, and what is done with memory that was freed."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""What malloc.h of glibc calls its parameters."""


def keep_freed_memory() -> None:
    """Let this process keep the memory that tensors free, for the next ones.

    glibc gives every large block back to the system at once, which then has to clear the pages of the next
    one: that was a tenth to a sixth of a step of a gradient weighting on ResNet-18. Other C libraries are
    left as they are, and so is one that the user has set up by ``MALLOC_...`` or ``GLIBC_TUNABLES``.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    glibc = _glibc()
    if glibc is not None and not chosen:
        glibc.mallopt(_MMAP_MAX, 0)
        glibc.mallopt(_TRIM_THRESHOLD, -1)


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "gnu_get_libc_version") else None


class PeakMemory:
    """Measures the highest memory since it was made, in MB (10⁶ bytes).

    On CUDA the allocator's peak. Elsewhere the process's resident set: Linux can start its high-water mark
    anew for every run, other systems give the mark of the whole process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        glibc = _glibc()
        if glibc is not None:
            glibc.malloc_trim(0)  # what earlier runs have freed is not this one's
        if _CLEAR.exists():
            try:
                _CLEAR.write_text("5")
            except OSError:  # a sandbox may forbid it; the mark of the whole process is then what we have
                return

    def read(self) -> float:
        """Return the peak so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        if _STATUS.exists():
            found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
            if found:
                return int(found[1]) * 1024 / 1e6
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
