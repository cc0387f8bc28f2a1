"""Published archives: downloaded with a checksum, resumed after an interruption, unpacked safely."""

from __future__ import annotations

import hashlib
import logging
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pooch

from mtlbench.atomic import translated
from mtlbench.data.progress import progress
from mtlbench.errors import MtlbenchError

PIECE = 1 << 18
TIMEOUT = 30.0
"""Seconds without an answer after which a connection counts as broken."""


class ResumingDownloader:
    """A `pooch` downloader that goes on where an earlier attempt stopped.

    What has arrived lies in ``part``, which survives a broken connection, Ctrl-C and kill -9. A server
    that knows no ranges sends the file from the start. ``attempts`` counts tries without a single new byte.
    ``begins``: the first digits of the file's SHA-256, for pooch knows whole checksums only.
    """

    def __init__(self, part: Path, attempts: int = 3, wait: float = 1.0, begins: str = "") -> None:
        self.part = part
        self.attempts = attempts
        self.wait = wait
        self.begins = begins

    def __call__(self, url: str, output_file: str, pup: Any, check_only: bool = False) -> bool | None:
        """Download ``url`` to ``output_file``, as pooch asks."""
        if check_only:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT):
                return True
        left = self.attempts
        while True:
            before = self._held()
            try:
                if self._continue(url):
                    self.part.replace(output_file)
                    if not _digest(Path(output_file)).startswith(self.begins):
                        raise ValueError(url)
                    return None
            except (OSError, HTTPException) as error:
                if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                    raise
                if self._held() <= before:
                    left -= 1
                if not left:
                    raise
            time.sleep(self.wait)

    def _held(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _continue(self, url: str) -> bool:
        """Fetch what is missing, and return whether the file is complete now."""
        held = self._held()
        request = urllib.request.Request(url, headers={"Range": f"bytes={held}-"} if held else {})
        try:
            response = urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise
            # Nothing lies beyond what is held: it is complete, or it is of another file and is dropped.
            if error.headers.get("Content-Range", "") == f"bytes */{held}":
                return True
            self.part.unlink()
            return False
        with response:
            resumed = response.status == 206
            held = held if resumed else 0
            length = response.headers.get("Content-Length")
            total = held + int(length) if length else 0
            name = url.rsplit("/", 1)[-1]
            with (
                self.part.open("ab" if resumed else "wb", buffering=0) as file,
                progress(f"downloading {name}", total, held, unit_bytes=True) as advance,
            ):
                while piece := response.read(PIECE):
                    with translated(f"cannot write {self.part}"):
                        file.write(piece)
                    advance(len(piece))
        if self._held() < total:
            raise HTTPException(f"connection closed after {self._held()} of {total} bytes")
        return True


def download(
    urls: Sequence[str],
    checksum: str,
    folder: Path,
    wait: float = 1.0,
    otherwise: str = "name a folder that has the data with --source DIR",
) -> Path:
    """Return the file in ``folder`` that one of ``urls`` (mirrors) gives and ``checksum`` confirms.

    checksum: such as ``"md5:..."``; of a sha256 the first digits will do. Nothing is downloaded where the
    right file is there already. otherwise: what else the user may do. Raises `MtlbenchError` with one line
    when offline, refused, broken off, changed or out of disk space.
    """
    name = urls[0].rsplit("/", 1)[-1]
    with translated(f"cannot write {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    pooch.get_logger().setLevel(logging.ERROR)
    kind, _, digits = checksum.partition(":")
    begins = digits if kind == "sha256" and len(digits) < 64 else ""
    if begins and (held := folder / name).is_file():
        if _digest(held).startswith(begins):
            return held
        held.unlink()
    failures = []
    for url in urls:
        downloader = ResumingDownloader(folder / f"{name}.part", wait=wait, begins=begins)
        known = None if begins else checksum
        try:
            return Path(pooch.retrieve(url, known, fname=name, path=folder, downloader=downloader))
        except urllib.error.HTTPError as error:
            failures.append(f"{url} answered {error.code} {error.reason}")
        except urllib.error.URLError as error:
            failures.append(f"{url.split('/')[2]} cannot be reached ({error.reason})")
        except ValueError:
            # pooch has removed the file; a download that goes on from its pieces would fail again.
            failures.append(f"{url} gave a file with another checksum")
        except HTTPException as error:
            failures.append(f"{url.split('/')[2]}: {error}")
        except OSError as error:
            failures.append(f"{url.split('/')[2]}: {error.strerror or error}")
    raise MtlbenchError(
        f"cannot download {name}: {'; '.join(failures)}. Check the connection and run the same command again "
        f"(it goes on where it stopped), or {otherwise}"
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive into ``folder``; members that would land outside of it are refused."""
    try:
        with (
            archive.open("rb") as packed,
            tarfile.open(fileobj=packed) as tar,
            progress(f"unpacking {archive.name}", archive.stat().st_size, unit_bytes=True) as advance,
        ):
            before = packed.tell()
            for member in tar:
                tar.extract(member, folder, filter="data")
                now = packed.tell()
                advance(now - before)
                before = now
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise MtlbenchError(
            f"cannot unpack {archive}: {error}; delete it and run the same command again"
        ) from error
