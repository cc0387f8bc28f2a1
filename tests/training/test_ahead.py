"""Data that is streamed, read ahead or held in memory: the same record, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mtlbench.training.ahead import ahead


def test_order_errors_and_early_stops() -> None:
    names = set()

    def fetch(item: int) -> int:
        names.add(threading.current_thread().name)
        if item == 7:
            raise KeyError(item)
        return item * item

    before = threading.active_count()
    for count in (0, 1, 3, 50):
        assert list(ahead(fetch, range(7), count)) == [n * n for n in range(7)]
        stream = ahead(fetch, range(9), count)
        assert [next(stream) for _ in range(7)] == [n * n for n in range(7)], "what came before is there"
        with pytest.raises(KeyError):
            next(stream)
        stopped = ahead(fetch, iter(range(7)), count)
        assert next(stopped) == 0
        stopped.close()
    assert threading.active_count() == before
    assert len(names) == 2, "the caller's thread and one other"


def test_the_next_one_is_fetched_meanwhile() -> None:
    second = threading.Event()

    def fetch(item: int) -> int:
        if item == 1:
            second.set()
        return item

    stream = ahead(fetch, range(3), 1)
    assert next(stream) == 0
    assert second.wait(10)
    stream.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small data file of coloured squares."""
    path = tmp_path / "squares.h5"
    draw = np.random.RandomState(0)
    with h5py.File(path, "w") as out:
        out.attrs.update(format="mtlbench-data", version=1, title="squares")
        out.attrs["tasks"] = json.dumps({"bright": {"kind": "binary"}, "mask": {"kind": "mask"}})
        for split, n in (("train", 13), ("val", 4), ("test", 4)):
            images = draw.randint(0, 256, (n, 16, 16, 3)).astype(np.uint8)
            out[f"{split}/inputs"] = images
            out[f"{split}/targets/bright"] = (np.arange(n) % 2).astype(np.uint8)
            out[f"{split}/targets/mask"] = (images.mean(-1) > 128).astype(np.uint8)
    return path


def test_the_record_does_not_depend_on_how_data_is_read(
    experiment: Callable[..., Any], file: Path, tmp_path: Path
) -> None:
    from mtlbench.training.report import Silence

    class Watch(Silence):
        def notice(self, text: str) -> None:
            """Say nothing."""

    records = []
    for number, (memory, prefetch) in enumerate([(2.0, 1), (0.0, 0), (0.0, 1), (0.0, 3)]):
        made = experiment(
            data=f"hdf5[path={file}]", encoder="conv", epochs=2, batch_size=4, memory=memory,
            prefetch=prefetch, baseline=False, results=tmp_path / str(number),
        )  # fmt: skip
        assert made.dataset.split("train").streamed == (memory == 0)
        (result,) = made.execute(Watch(), lambda: False)
        records.append(result.run.record.values)
    assert all(record == records[0] for record in records)


SCRIPT = """
import resource, sys, torch
from mtlbench.registry import Registry
from mtlbench.training.ahead import ahead

dataset = Registry().choose("datasets", f"hdf5[path={sys.argv[1]}]").build()
split = dataset.split("train")
assert split.streamed
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:640]
count = sum(len(batch.inputs) for batch in ahead(split.fetch, torch.split(order, 16), 1))
print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_twenty_gigabytes_are_streamed_in_a_fixed_budget(tmp_path: Path) -> None:
    path = tmp_path / "large.h5"
    with h5py.File(path, "w") as out:
        out.attrs.update(format="mtlbench-data", version=1, title="large")
        out.attrs["tasks"] = json.dumps({"kind": {"kind": "binary"}})
        for split, n in (("train", 101_725), ("val", 2), ("test", 2)):
            # Chunks that were never written take no room on the disk, and are read as zeros.
            out.create_dataset(f"{split}/inputs", (n, 256, 256, 3), "u1", chunks=(1, 256, 256, 3))
            out[f"{split}/targets/kind"] = np.zeros(n, np.uint8)
        assert out["train/inputs"].nbytes > 19.99e9
    assert path.stat().st_size < 2**20
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    count, grown = map(int, done.stdout.split())
    assert count == 640, "120 MB of images were read"
    assert grown < 60, f"reading a sixteenth of that at a time took {grown} MiB"
