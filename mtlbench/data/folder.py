"""Where prepared data lives. Imports no torch: the command line asks at start."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def data_folder(given: Path | None) -> Path:
    """Return the folder of prepared data: ``given``, ``$MTLBENCH_DATA`` or the user's cache folder."""
    if given is not None:
        return given
    named = os.environ.get("MTLBENCH_DATA")
    return Path(named) if named else platformdirs.user_cache_path("mtlbench") / "data"
