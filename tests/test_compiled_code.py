from __future__ import annotations

import json
import os
import subprocess
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numba import carray

from mtlbench import compiled as module
from mtlbench.compiled import HEAD, Shared, arrive, compiled, last, pointer, take, told

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


def test_code_is_made_anew_where_a_function_changes_that_it_calls(tmp_path: Path) -> None:
    program, helper = tmp_path / "program.py", tmp_path / "helper.py"
    program.write_text("from helper import factor" + PROGRAM.replace("2 * x", "factor() * x"))
    place = {"NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    for factor in (2, 5):
        helper.write_text(
            f"from mtlbench.compiled import compiled\n@compiled()\ndef factor():\n    return {factor}\n"
        )
        assert _run(program, **place)[:2] == (factor * 3.5, 0)
        assert _run(program, **place)[:2] == (factor * 3.5, 1)


def test_what_was_typed_in_is_compiled_and_not_kept() -> None:
    program = PROGRAM.split("print")[0] + "print(doubled(3.5))"
    done = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, check=True)
    assert done.stdout == "7.0\n"


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


def _take_pieces(order: Any) -> None:
    """Note how often each of the pieces is taken, and when all were; their number follows the `HEAD`."""
    head = carray(order, 1).ctypes.data
    given = told(head, 3)
    pieces, outwards = given[0], given[1] == 1
    taken = carray(pointer(head + 8 * (len(HEAD) + 3)), pieces, np.int64)
    side = arrive(head)
    while True:
        piece = take(head, side, pieces, outwards)
        if piece == pieces:
            break
        taken[piece] += 1 + piece
        if last(head, pieces):
            given[2] += taken.sum()


_TAKE_PIECES = Shared(_take_pieces)


@pytest.mark.parametrize("outwards", [0, 1])
@pytest.mark.parametrize("pieces", [1, 2, 3, 10_000])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("team", [True, False])
def test_threads_share_pieces(
    pieces: int,
    outwards: int,
    threads: int,
    team: bool,
    set_threads: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if team and not module._TEAMS:
        pytest.skip("this torch has no threads that others can use")
    monkeypatch.setattr(module, "_TEAMS", module._TEAMS if team else [])
    order = array("q", [*HEAD, pieces, outwards, 0, *[0] * pieces])
    set_threads(threads)
    _TAKE_PIECES(torch.int64, order, module.MANY)
    assert order[1] == (threads if team else 1)  # so many came
    assert (np.array(order[len(HEAD) + 3 :]) == 1 + np.arange(pieces)).all()
    assert order[len(HEAD) + 2] == pieces * (pieces + 1) // 2  # the last found all done, and it was one


def _note_pieces(order: Any) -> None:
    """Write down the pieces in the order in which one thread takes them."""
    head = carray(order, 1).ctypes.data
    given = told(head, 3)
    side, pieces = arrive(head) + given[2], given[0]
    taken = carray(pointer(head + 8 * (len(HEAD) + 3)), pieces, np.int64)
    for number in range(pieces):
        taken[number] = take(head, side, pieces, given[1] == 1)


_NOTE_PIECES = Shared(_note_pieces)


@pytest.mark.parametrize(
    ("side", "outwards", "expected"),
    [(0, 0, [0, 1, 4, 3, 2]), (0, 1, [1, 0, 2, 3, 4]), (1, 0, [4, 3, 2, 0, 1]), (1, 1, [2, 3, 4, 1, 0])],
)
def test_a_thread_takes_its_own_half_first_there_and_back(
    side: int, outwards: int, expected: list[int]
) -> None:
    order = array("q", [*HEAD, 5, outwards, side, *[0] * 5])
    _NOTE_PIECES(torch.int64, order, 0)
    assert order[len(HEAD) + 3 :].tolist() == expected
