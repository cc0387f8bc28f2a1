"""Files that appear whole or not at all, whatever happens to the process or the disk meanwhile."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mtlbench.errors import MtlbenchError

WRITING = "name another folder with --data-dir or $MTLBENCH_DATA"

STALE_SECONDS = 60
"""A claim to a name is held for the length of a rename; one that is older belongs to nobody."""


@contextlib.contextmanager
def translated(what: str, remedy: str = WRITING) -> Iterator[None]:
    """Turn an `OSError` of the block into `MtlbenchError`: ``what`` ("cannot write X"), why, ``remedy``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        room = "make room there or " if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        raise MtlbenchError(f"{what}: {reason}; {room}{remedy}") from error


def sweep(folder: Path, name: str) -> int:
    """Remove what killed writers of ``folder/name`` left behind, and return the number of files.

    A living writer holds a lock on its temporary file, which the system takes from it when it dies; so
    only files that nobody writes any more are removed.
    """
    return sum(map(remove_abandoned, folder.glob(f".{name}.*.tmp")))


def remove_abandoned(path: Path) -> bool:
    """Remove a temporary file that no living process writes; False where one does, or it is gone."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    return False


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[tuple[int, Path]]:
    """Give the descriptor and the name of a locked temporary file beside ``path``; it is gone afterwards.

    When the process is killed, the next writer of the same path removes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, path.name)
    descriptor, temporary = _locked_temporary(path)
    try:
        yield descriptor, temporary
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


def _complete(descriptor: int) -> None:
    """Bring a temporary file to the disk, readable as any new file is."""
    os.fchmod(descriptor, 0o666 & ~_umask())
    os.fsync(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[int]:
    """Give the descriptor of a temporary file beside ``path`` that becomes ``path`` when the block succeeds.

    Written to disk (fsync) before it is renamed, so that after a crash there is either the old file or the
    complete new one. When the block raises, nothing has happened. Several processes may write the same
    path: the last one wins.
    """
    with _temporary(path) as (descriptor, temporary):
        yield descriptor
        _complete(descriptor)
        temporary.replace(path)
        _sync_folder(path.parent)


def create(path: Path, content: str | bytes) -> bool:
    """Write ``content`` to ``path`` whole or not at all; False where the path is taken already."""
    with _temporary(path) as (descriptor, temporary):
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        _complete(descriptor)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                raise
            return _claim(temporary, path)
        _sync_folder(path.parent)
        return True


def _claim(temporary: Path, path: Path) -> bool:
    """Do what a link does, on file systems without hard links: an exclusive claim, then a rename."""
    claim = path.with_name(f".{path.name}.claim")
    with contextlib.suppress(FileNotFoundError):
        if time.time() - claim.stat().st_mtime > STALE_SECONDS:
            claim.unlink(missing_ok=True)  # its writer was killed between the claim and the rename
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    try:
        if path.exists():
            return False
        temporary.replace(path)
        _sync_folder(path.parent)
        return True
    finally:
        claim.unlink(missing_ok=True)


def _locked_temporary(path: Path) -> tuple[int, Path]:
    while True:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            swept = not temporary.exists()
        except BlockingIOError:
            swept = True  # about to be: before our lock, another process took it for a leftover
        except OSError:
            swept = False  # a disk without locks, where `sweep` cannot lock and removes nothing
        if not swept:
            return descriptor, temporary
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusive(folder: Path, busy: str) -> Iterator[None]:
    """Hold the lock of ``folder`` (made where missing); `MtlbenchError` ``busy`` if another process does."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MtlbenchError(busy) from None
        yield


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Try to hold ``path`` for this process; give whether it was free.

    The system frees it when its holder dies. The holder before may have made what this one wants to make: it
    must look again whether it is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = _is_at(file.fileno(), path)
        except BlockingIOError:
            mine = False
        except OSError:
            mine = True  # a disk without locks, where nobody can hold anything
        if not mine:
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)


def _is_at(descriptor: int, path: Path) -> bool:
    """Say whether an open file is the one at ``path``, which its last holder may have removed since."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Give ``folder`` empty, whatever was in it, and remove it afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
