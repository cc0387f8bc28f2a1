from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mtlbench.data.download import download, unpack
from mtlbench.errors import MtlbenchError

CONTENT = bytes(range(256)) * 8192
CHECKSUM = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


@dataclass
class Site:
    """A local server of CONTENT: breaks off after `limit` bytes of an answer, knows ranges if `ranges`."""

    url: str = ""
    limit: int | None = None
    ranges: bool = True
    asked: list[str | None] = field(default_factory=list)
    sent: int = 0


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            site.asked.append(wanted)
            if self.path != "/data.bin":
                self.send_error(404)
                return
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and site.ranges else 0
            if start >= len(CONTENT):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
                self.end_headers()
                return
            body = CONTENT[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
            self.end_headers()
            body = body[: site.limit]
            self.wfile.write(body)
            site.sent += len(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}/data.bin"
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_is_downloaded_once(site: Site, tmp_path: Path) -> None:
    for _ in range(2):
        path = download([site.url], CHECKSUM, tmp_path / "new")
        assert path == tmp_path / "new" / "data.bin"
        assert path.read_bytes() == CONTENT
    assert site.asked == [None]
    assert [p.name for p in path.parent.iterdir()] == ["data.bin"]


def test_a_download_goes_on_where_it_stopped(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(CONTENT[:1_000_000])
    assert download([site.url], CHECKSUM, tmp_path).read_bytes() == CONTENT
    assert site.asked == ["bytes=1000000-"]
    assert site.sent == len(CONTENT) - 1_000_000


def test_a_connection_that_breaks_is_taken_up_again(site: Site, tmp_path: Path) -> None:
    site.limit = 600_000
    assert download([site.url], CHECKSUM, tmp_path, wait=0.01).read_bytes() == CONTENT
    assert len(site.asked) == 4
    assert site.sent == len(CONTENT)


def test_a_server_without_ranges_starts_again(site: Site, tmp_path: Path) -> None:
    site.ranges = False
    (tmp_path / "data.bin.part").write_bytes(b"old" * 1000)
    assert download([site.url], CHECKSUM, tmp_path).read_bytes() == CONTENT


def test_a_complete_part_needs_no_byte(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    assert download([site.url], CHECKSUM, tmp_path).read_bytes() == CONTENT
    assert site.sent == 0


def test_a_part_that_is_too_long_is_dropped(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(CONTENT + b"x")
    assert download([site.url], CHECKSUM, tmp_path, wait=0.01).read_bytes() == CONTENT


def test_a_changed_file_is_refused_and_not_kept(site: Site, tmp_path: Path) -> None:
    with pytest.raises(MtlbenchError, match="another checksum"):
        download([site.url], "md5:" + "0" * 32, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_second_mirror_is_asked_where_the_first_has_nothing(site: Site, tmp_path: Path) -> None:
    first = site.url.replace("data.bin", "gone/data.bin")
    assert download([first, site.url], CHECKSUM, tmp_path).read_bytes() == CONTENT


def test_offline_is_one_polite_line_and_what_arrived_is_kept(site: Site, tmp_path: Path) -> None:
    site.limit = 0
    (tmp_path / "data.bin.part").write_bytes(CONTENT[:1000])
    with pytest.raises(MtlbenchError, match=r"cannot download data\.bin: .*Check the connection") as caught:
        download([site.url, "http://127.0.0.1:9/data.bin"], CHECKSUM, tmp_path, wait=0.01)
    assert "\n" not in str(caught.value)
    assert "127.0.0.1:9 cannot be reached" in str(caught.value)
    assert (tmp_path / "data.bin.part").read_bytes() == CONTENT[:1000]


def test_archives_are_unpacked_and_may_not_leave_the_folder(tmp_path: Path) -> None:
    def pack(name: str, member: str) -> Path:
        with tarfile.open(tmp_path / name, "w:gz") as tar:
            entry = tarfile.TarInfo(member)
            entry.size = 5
            tar.addfile(entry, io.BytesIO(b"hello"))
        return tmp_path / name

    out = tmp_path / "out"
    out.mkdir()
    unpack(pack("good.tar.gz", "a/b.txt"), out)
    assert (out / "a" / "b.txt").read_bytes() == b"hello"
    with pytest.raises(MtlbenchError, match=r"cannot unpack .*bad\.tar\.gz"):
        unpack(pack("bad.tar.gz", "../escaped.txt"), out)
    assert not (tmp_path / "escaped.txt").exists()
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes((tmp_path / "good.tar.gz").read_bytes()[:40])
    with pytest.raises(MtlbenchError, match="cannot unpack"):
        unpack(cut, out)
