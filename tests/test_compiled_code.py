from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mtlbench.compiled import compiled

PROGRAM = """
import json, sys
import numpy as np
from mtlbench.compiled import compiled
@compiled()
def doubled(x):
    return 2 * x
print(json.dumps([doubled(3.5), sum(doubled.stats.cache_hits.values()), doubled.stats.cache_path]))
"""


def _run(program: Path, **env: str) -> tuple[float, int, str]:
    given = {**os.environ, **env}
    done = subprocess.run([sys.executable, program], env=given, capture_output=True, text=True, check=True)
    value, hits, place = json.loads(done.stdout)
    return value, hits, place


def test_code_is_kept_for_the_next_process_and_made_anew_where_it_is_damaged(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    place = {"NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    assert _run(program, **place)[:2] == (7.0, 0)
    value, hits, path = _run(program, **place)
    assert (value, hits) == (7.0, 1)
    assert Path(path).is_relative_to(tmp_path / "kept")
    damaged = [*Path(path).glob("*.nb?")]
    assert len(damaged) == 2
    for file in damaged:
        file.write_bytes(b"")
    assert _run(program, **place)[:2] == (7.0, 0)


def test_a_disk_that_takes_no_more_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @compiled()
    def tripled(x: float) -> float:
        return 3 * x

    def full(self: object, key: object, data: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
    assert tripled(2.0) == 6.0


def test_division_by_zero_is_as_in_numpy() -> None:
    @compiled()
    def inverse(x: float) -> float:
        return 1 / x

    assert inverse(0.0) == np.inf
