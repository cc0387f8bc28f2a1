"""The data path: images a second by layout and reader, dense metrics, and what training waits for.

Run: make bench, or python -m pytest benchmarks/test_data.py --benchmark-enable --benchmark-only [--quick]

Readers take turns at the same random images, 16 to a batch (of a layout that takes seconds for that: one,
times 16), and give float32 batches in 0..1, channels first. The files are in the system's cache: what is
timed is the way from there, not the disk. Readers and metrics run on one thread and are timed by processor
time, so that a busy machine changes little.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from tables import Tables
from torch import Tensor
from turns import Turns

from mtlbench.config import RunConfig
from mtlbench.contracts import Split, Task
from mtlbench.experiment import Experiment
from mtlbench.registry import Registry
from mtlbench.tasks import make_tasks
from mtlbench.training.evaluate import Meters
from mtlbench.training.loop import train
from mtlbench.training.memory import PeakMemory
from mtlbench.training.report import Silence

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "oxford-iiit-pet"
CPU = torch.device("cpu")
BATCH, SIDE = 16, 256

RATE = "Reading images of 256 x 256: images a second"
READ = "Reading images: times faster than {}"
DENSE = "Dense metrics of a batch of 8 x 288 x 384"
FASTER = "Dense metrics: times faster than {}"
WAIT = "Training unet on pets at 128 px: where a step's time goes"

ONE = "one row at a time"
AUTO, GZIP = "automatic chunks", "automatic chunks, gzip"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- reading -----------------------------------------------------------------------------------------------


def photographs(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Smooth areas and a little noise, which compress about as photographs do; uint8 [N, 256, 256, 3]."""
    draw = np.random.default_rng(0)
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for image in images:
        coarse = torch.from_numpy(draw.integers(0, 230, (1, 3, 17, 17))).float()
        smooth = torch.nn.functional.interpolate(coarse, SIDE, mode="bilinear")[0].permute(1, 2, 0)
        image[:] = smooth.numpy() + draw.integers(0, 12, image.shape, dtype=np.uint8)
    return images


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same images in four files that ``--data hdf5`` reads; automatic chunks depend on their number."""
    images = photographs(600)
    options: dict[str, dict[str, Any]] = {
        "a chunk an image": {"chunks": (1, SIDE, SIDE, 3)},
        "contiguous": {},
        AUTO: {"chunks": True},
        GZIP: {"chunks": True, "compression": "gzip"},
    }
    folder, found = tmp_path_factory.mktemp("layouts"), {}
    for name, layout in options.items():
        found[name] = folder / f"{len(found)}.h5"
        with h5py.File(found[name], "w") as file:
            file.attrs.update(format="mtlbench-data", version=1, title=name)
            file.attrs["tasks"] = json.dumps({"bright": {"kind": "binary"}})
            for split, part in (("train", images), ("val", images[:2]), ("test", images[:2])):
                file.create_dataset(f"{split}/inputs", data=part, **layout)
                file[f"{split}/targets/bright"] = (part.mean((1, 2, 3)) > 120).astype(np.uint8)
    return found


def split_of(path: Path, memory: int) -> Split:
    found = Registry().choose("datasets", f"hdf5[path={path}]").build(memory=memory).split("train")
    assert isinstance(found, Split)
    assert found.streamed == (memory == 0)
    return found


def one_row_at_a_time(rows: h5py.Dataset, indices: Tensor) -> Tensor:
    """Read as a dataset class with an open handle does: an item an index, then a batch of them."""
    items = [torch.from_numpy(rows[i]).permute(2, 0, 1).float().div(255) for i in indices.tolist()]
    return torch.stack(items)


def by_list(rows: h5py.Dataset, indices: Tensor) -> Tensor:
    """Read by h5py's own list indexing, which wants an order."""
    places = indices.sort()
    read = torch.from_numpy(rows[places.values.tolist()]).permute(0, 3, 1, 2).float().div(255)
    return read[places.indices.argsort()]


@pytest.mark.usefixtures("one_thread")
def test_reading(benchmark: Any, tables: Tables, layouts: dict[str, Path]) -> None:
    opened = {name: h5py.File(path, locking=False)["train/inputs"] for name, path in layouts.items()}
    chunked = "a chunk an image"
    ours = {f"ours, {name}, streamed": split_of(layouts[name], 0) for name in (chunked, "contiguous")} | {
        "ours, held in memory": split_of(layouts[chunked], 2**40)
    }
    readers: dict[str, Callable[[Tensor], Tensor]] = {
        name: lambda indices, split=split: split.fetch(indices).to(CPU).inputs  # type: ignore[misc]
        for name, split in ours.items()
    }
    readers |= {
        ONE: partial(one_row_at_a_time, opened[chunked]),
        "list indexing": partial(by_list, opened[chunked]),
        AUTO: partial(one_row_at_a_time, opened[AUTO]),
        GZIP: partial(one_row_at_a_time, opened[GZIP]),
    }
    slow = {"list indexing": 4, AUTO: 4, GZIP: 1}
    draw = torch.Generator().manual_seed(0)
    drawn = torch.zeros(BATCH, dtype=torch.int64)

    def prepare(name: str) -> None:
        if name == next(iter(readers)):
            drawn.copy_(torch.randint(0, len(opened[chunked]), (BATCH,), generator=draw))

    def step(name: str) -> Callable[[], Tensor]:
        return lambda: readers[name](drawn[: slow.get(name, BATCH)])

    expected = readers[ONE](drawn[:1])
    for name, reader in readers.items():
        assert torch.equal(reader(drawn[:1]), expected), name
    steps = {name: step(name) for name in readers}
    turns = Turns(steps, time.process_time, prepare=prepare).run(
        benchmark, 3 if tables.quick else 15, most=60
    )
    for name, count in slow.items():
        turns.times[name] = [BATCH / count * seconds for seconds in turns.times[name]]
    for name in readers:
        tables.cell(RATE, name, "images/s", f"{BATCH / turns.seconds(name):,.0f}")
    for name in ours:
        for other in (ONE, GZIP):
            tables.ratio(READ.format("…"), name, other, turns.ahead(name, other))
    name, goals = f"ours, {chunked}, streamed", {ONE: 1.3, GZIP: 300}
    for other, goal in goals.items():
        tables.goal(READ.format(other), goal, turns.ahead(name, other))


# ---- dense metrics -----------------------------------------------------------------------------------------

SCENE = make_tasks(
    {
        "segmentation": {"kind": "segmentation", "classes": 13},
        "depth": {"kind": "depth"},
        "normals": {"kind": "normals"},
    }
)
LIMITS = (11.25, 22.5, 30.0)
Maps = dict[str, Tensor]


def scene(seed: int, size: tuple[int, ...] = (8, 288, 384)) -> tuple[Maps, Maps]:
    """Outputs of a network and targets, some without a label, as a batch of nyuv2 has them."""
    draw = torch.Generator().manual_seed(seed)
    batch, *space = size

    def normal(channels: int) -> Tensor:
        return torch.randn(batch, channels, *space, generator=draw)

    unlabelled = torch.rand(size, generator=draw) < 0.2
    normals = torch.nn.functional.normalize(normal(3), dim=1)
    targets = {
        "segmentation": torch.randint(0, 13, size, generator=draw).masked_fill_(unlabelled, -1),
        "depth": (normal(1).abs() + 0.5).masked_fill_(unlabelled[:, None], torch.nan),
        "normals": normals.masked_fill(unlabelled[:, None], torch.nan),
    }
    outputs = {
        "segmentation": normal(13),
        "depth": normal(1).abs(),
        "normals": normals + 0.4 * normal(3),
    }
    return outputs, targets


class Streamed:
    """Ours: what evaluation uses."""

    def __init__(self, tasks: Sequence[Task] = SCENE) -> None:
        self.meters = {task.name: Meters(task) for task in tasks}

    def update(self, outputs: Maps, targets: Maps) -> None:
        for name, meters in self.meters.items():
            meters.update(outputs[name], targets[name])

    def compute(self) -> dict[str, float | None]:
        return {k: v for meters in self.meters.values() for k, v in meters.scores().items()}


def class_iou(predicted: Tensor, target: Tensor) -> float:
    """Mean over the classes of intersection over union, class by class."""
    found = []
    for number in range(13):
        a, b = predicted == number, target == number
        if (either := (a | b).sum()) > 0:
            found.append(float((a & b).sum() / either))
    return statistics.fmean(found)


def angles_between(output: Tensor, target: Tensor) -> Tensor:
    """Degrees, by the arc cosine."""
    cosine = torch.nn.functional.cosine_similarity(output, target, dim=1)
    return cosine.clamp(-1, 1).acos().rad2deg()


def known_depth(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    known = ~target.isnan()
    return output[known], target[known]


def known_angles(output: Tensor, target: Tensor) -> Tensor:
    return angles_between(output, target)[~target.isnan().any(1)]


def known_labels(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    known = target >= 0
    return output.argmax(1)[known], target[known]


def from_labels(which: str, predicted: Tensor, target: Tensor) -> float:
    return class_iou(predicted, target) if which == "iou" else float((predicted == target).float().mean())


def from_depths(which: str, output: Tensor, target: Tensor) -> float:
    error = (output - target).abs()
    return float((error if which == "abs_error" else error / target).mean())


def from_angles(which: str, angles: Tensor) -> float:
    if which == "angle_mean":
        return float(angles.mean())
    if which == "angle_median":
        return float(angles.median())
    return float((angles < float(which.removeprefix("within_"))).float().mean())


class KeepsOutputs:
    """Every metric by itself keeps outputs and targets of the split, and scores them at the end."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = {
            (task.name, metric.name): [] for task in SCENE for metric in task.metrics
        }

    def update(self, outputs: Maps, targets: Maps) -> None:
        for (task, _), kept in self.kept.items():
            kept.append((outputs[task], targets[task]))

    def compute(self) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for (task, metric), kept in self.kept.items():
            output, target = (torch.cat(parts) for parts in zip(*kept, strict=True))
            if task == "segmentation":
                found[metric] = from_labels(metric, *known_labels(output, target))
            elif task == "depth":
                found[metric] = from_depths(metric, *known_depth(output, target))
            else:
                found[metric] = from_angles(metric, known_angles(output, target))
        return found


class KeepsPixels:
    """Keeps the class, the depth and the angle of every labelled pixel, once for all metrics of a task."""

    def __init__(self) -> None:
        self.kept: dict[str, list[tuple[Tensor, ...]]] = {task.name: [] for task in SCENE}

    def update(self, outputs: Maps, targets: Maps) -> None:
        labels = known_labels(outputs["segmentation"], targets["segmentation"])
        self.kept["segmentation"].append(labels)
        self.kept["depth"].append(known_depth(outputs["depth"], targets["depth"]))
        self.kept["normals"].append((known_angles(outputs["normals"], targets["normals"]),))

    def compute(self) -> dict[str, float | None]:
        score = {"segmentation": from_labels, "depth": from_depths, "normals": from_angles}
        joined = {k: [torch.cat(parts) for parts in zip(*kept, strict=True)] for k, kept in self.kept.items()}
        return {m.name: score[task.name](m.name, *joined[task.name]) for task in SCENE for m in task.metrics}


METERS: dict[str, Callable[[], Any]] = {
    "ours, streamed": Streamed,
    "every metric keeps outputs": KeepsOutputs,
    "kept pixel by pixel": KeepsPixels,
}


def scored(make: Callable[[], Any], batches: Sequence[tuple[Maps, Maps]]) -> dict[str, float | None]:
    meters = make()
    for outputs, targets in batches:
        meters.update(outputs, targets)
    found: dict[str, float | None] = meters.compute()
    return found


@pytest.mark.usefixtures("one_thread")
def test_dense_metrics(benchmark: Any, tables: Tables) -> None:
    batches = [scene(seed) for seed in range(2 if tables.quick else 4)]
    ours, *others = (scored(make, batches) for make in METERS.values())
    for other in others:
        assert other == {name: pytest.approx(value, rel=2e-3) for name, value in ours.items()}
    steps = {name: partial(scored, make, batches) for name, make in METERS.items()}
    turns = Turns(steps, time.process_time).run(benchmark, 4 if tables.quick else 12, most=10)
    for name in METERS:
        tables.cell(DENSE, name, "ms a batch", f"{1e3 * turns.seconds(name) / len(batches):.1f}")
        if name != "ours, streamed":
            tables.ratio(FASTER.format("…"), name, "times", turns.ahead("ours, streamed", name))
    keeping = "every metric keeps outputs"
    tables.goal(FASTER.format(keeping), 6, turns.ahead("ours, streamed", keeping))
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True)
    grown = json.loads(done.stdout)
    for name, megabytes in grown.items():
        tables.cell(DENSE, name, "MB a further batch", f"{megabytes:.0f}")
    assert grown["ours, streamed"] < 8, "it grows"


def memory(few: int = 4, many: int = 12) -> dict[str, float]:
    """Return by how many MB the memory of a process grows with every further batch, by implementation."""
    outputs, targets = scene(0)

    def batch() -> tuple[Maps, Maps]:
        return {k: v.clone() for k, v in outputs.items()}, targets

    def peak(make: Callable[[], Any], count: int) -> float:
        meters, mark = make(), PeakMemory(CPU)
        for _ in range(count):
            meters.update(*batch())
        return mark.read()

    return {name: (-peak(make, few) + peak(make, many)) / (many - few) for name, make in METERS.items()}


# ---- waiting -----------------------------------------------------------------------------------------------


def test_waiting(benchmark: Any, tables: Tables, tmp_path: Path) -> None:
    if not REAL.is_dir():
        tables.skip("waiting for data: needs the real photographs in ../shared/data")
        pytest.skip("needs the real photographs in ../shared/data")
    registry = Registry()
    registry.get("datasets", "pets").load().prepare(tmp_path, REAL, 128, lambda line: None)
    settings = RunConfig(
        data="pets[size=128]", epochs=1, device="cpu", baseline=False, data_dir=tmp_path, results=tmp_path
    )
    ways: dict[str, dict[str, Any]] = {
        "held in memory": {},
        "streamed, no worker": {"memory": 0.0, "workers": 0},
        "streamed, 1 worker": {"memory": 0.0, "workers": 1},
    }
    if not tables.quick:
        edges = {"aux": ("edges",)}
        ways |= {
            "with --aux edges, no worker": edges | {"workers": 0},
            "with --aux edges, 1 worker": edges | {"workers": 1},
        }

    def each() -> None:
        for name, way in ways.items():
            experiment = Experiment(replace(settings, **way), registry)
            found = train(experiment.run, experiment.dataset, CPU, Silence(), profile=True).profile
            assert found is not None
            tables.cell(WAIT, name, "ms a step", f"{1e3 * found.training / found.steps:.0f}")
            tables.cell(WAIT, name, "waiting for data", f"{100 * found.waiting:.2f} %")
            tables.keep(f"{WAIT}, {name}, not waiting", 1 - found.waiting)
            if "memory" in name or "1 worker" in name:
                tables.goal(f"{WAIT}: waiting for data, {name}", 0.05, found.waiting, most=True)

    benchmark.pedantic(each, rounds=1)


if __name__ == "__main__":
    print(json.dumps(memory()))
