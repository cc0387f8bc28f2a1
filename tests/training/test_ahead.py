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
from runs import facts, outcome, outcome_in_pieces
from torch import Tensor

from mtlbench.data.hdf5 import DiskRows
from mtlbench.errors import MtlbenchError
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
        names.clear()
        assert list(ahead(fetch, range(7), count)) == [n * n for n in range(7)]
        assert ("MainThread" in names) == (count == 0)
        stream = ahead(fetch, range(9), count)
        assert [next(stream) for _ in range(7)] == [n * n for n in range(7)], "what came before is there"
        with pytest.raises(KeyError):
            next(stream)
        stopped = ahead(fetch, iter(range(7)), count)
        assert next(stopped) == 0
        stopped.close()
    assert threading.active_count() == before


def test_workers_fetch_at_once() -> None:
    together = threading.Barrier(3)

    def fetch(item: int) -> int:
        together.wait(10)
        return item

    assert list(ahead(fetch, range(6), 3)) == list(range(6))


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


def write(path: Path, per_task: bool = False) -> str:
    """Write a small data file of coloured squares and return its spec."""
    draw = np.random.RandomState(0)
    with h5py.File(path, "w") as out:
        out.attrs.update(format="mtlbench-data", version=1, title="squares")
        out.attrs["tasks"] = json.dumps({"bright": {"kind": "binary"}, "mask": {"kind": "mask"}})
        for split, n in (("train", 13), ("val", 4), ("test", 4)):
            for task in ("bright", "mask") if per_task else ("",):
                images = draw.randint(0, 256, (n, 16, 16, 3)).astype(np.uint8)
                part = f"{split}/{task}".rstrip("/")
                out.create_dataset(f"{part}/inputs", data=images, chunks=(1, 16, 16, 3))
                if task != "mask":
                    out[f"{part}/targets/bright"] = (np.arange(n) % 2).astype(np.uint8)
                if task != "bright":
                    out[f"{part}/targets/mask"] = (images.mean(-1) > 128).astype(np.uint8)
                n -= 5 * per_task * (split == "train")
    return f"hdf5[path={path}]"


@pytest.mark.parametrize("mode", ["joint", "per-task"])
def test_the_outcome_does_not_depend_on_how_data_is_read(
    experiment: Callable[..., Any], mode: str, tmp_path: Path
) -> None:
    data = write(tmp_path / "squares.h5", per_task=mode == "per-task")
    aux = ("edges", "denoise") if mode == "joint" else ()
    found, names = [], []
    before = threading.active_count()
    for memory, workers in [(2.0, 0), (0.0, 0), (0.0, 1), (0.0, 2), (2.0, 2)]:
        made = experiment(
            data=data, aux=aux, encoder="conv[width=4]", epochs=3, batch_size=4, memory=memory,
            workers=workers, baseline=False,
        )  # fmt: skip
        names.append(made.look(made.run)[0])
        assert made.run.workers == workers
        found.append(facts(outcome(made)))
        if workers and not memory:
            found.append(facts(outcome_in_pieces(made, tmp_path / f"{workers}.pt")))
    assert len(set(names)) == 1, "workers are no part of what a run is"
    assert all(other == found[0] for other in found)
    assert threading.active_count() == before


def test_an_error_of_a_worker_is_the_run_s_own(
    experiment: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = experiment(
        data=write(tmp_path / "squares.h5"), encoder="conv[width=4]", batch_size=4, memory=0.0, workers=2
    )
    plain, before = DiskRows.take, threading.active_count()

    def take(rows: DiskRows, indices: Tensor) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            raise OSError("the file is truncated")
        return plain(rows, indices)

    monkeypatch.setattr(DiskRows, "take", take)
    with pytest.raises(MtlbenchError, match=r"squares\.h5 is truncated: "):
        outcome(made)
    assert threading.active_count() == before


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
