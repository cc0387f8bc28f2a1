"""Two commands that want the same run: one trains it, whatever happens to the other."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtlbench import atomic
from mtlbench.atomic import claimed
from mtlbench.cli.progress import Quiet
from mtlbench.errors import Interrupted
from mtlbench.parallel import Ranks


def test_a_file_that_its_holder_has_removed_is_no_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.lock"

    def late(descriptor: int, how: int) -> None:
        path.unlink()  # the holder ends between our open and our lock
        fcntl.flock(descriptor, how)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "fcntl", _Locks(late))
        with claimed(path) as mine:
            assert not mine
    with claimed(path) as mine, claimed(path) as other:
        assert mine
        assert not other
    assert not path.exists()


def test_a_disk_without_locks_trains_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(atomic, "fcntl", _Locks(none))
    with claimed(tmp_path / "run.lock") as mine:
        assert mine


class _Locks:
    LOCK_EX, LOCK_NB = fcntl.LOCK_EX, fcntl.LOCK_NB

    def __init__(self, flock: Callable[[int, int], None]) -> None:
        self.flock = flock


class _Second(Ranks):
    """The second of two ranks; ``told`` is what the first says about the claim, time after time."""

    def __init__(self, told: list[bool], stopped: bool = False) -> None:
        super().__init__(1, 2)
        self.told, self.stopped = told, stopped

    def from_first(self, make: Callable[[], Any]) -> Any:
        return self.told.pop(0)

    def any(self, flag: bool) -> bool:
        return self.stopped


def test_ranks_wait_and_stop_together(
    experiment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = experiment()
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    setting.ranks = waiting = _Second([False, False, True])
    with setting._claimed(setting.run, "0" * 16, Quiet(), lambda: False):
        assert not waiting.told
        assert not list(setting.store.root.rglob("*.lock"))
    setting.ranks = _Second([False, False], stopped=True)
    with pytest.raises(Interrupted), setting._claimed(setting.run, "0" * 16, Quiet(), lambda: False):
        pass
