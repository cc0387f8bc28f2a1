"""The data file that runs read: one layout for every dataset, described in docs/data-schema.md.

A split is a group with the array ``inputs`` and the group ``targets``, which holds one array a task; where
each task has inputs of its own, a split is a group of such groups, one a task. Attributes of the file say
what it is: format, version, title and, as JSON, tasks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlbench.atomic import translated
from mtlbench.contracts import SPLITS, Batch, Dataset, Split, SplitName, Task, Vector
from mtlbench.data.hdf5 import (
    MEMORY_BUDGET,
    DiskRows,
    MemoryRows,
    Rows,
    Table,
    explained,
    hdf5_writer,
    open_hdf5,
)
from mtlbench.data.photos import SIZES, BrokenFileError
from mtlbench.data.progress import progress
from mtlbench.errors import MtlbenchError
from mtlbench.losses import BinaryCrossEntropy, CrossEntropy
from mtlbench.tasks import make_tasks, may_lack

FORMAT = "mtlbench-data"
VERSION = 1
UNLABELLED_BYTE = 255
"""What stands for "no label" where labels are unsigned bytes, as in many label maps."""

Declared = Mapping[str, Mapping[str, Any]]


class Row(NamedTuple):
    """One sample as it is stored: images and maps with channels last, NaN or -1 where a label is missing."""

    inputs: NDArray[Any]
    targets: Mapping[str, Any]


# ---- writing -----------------------------------------------------------------------------------------------


def write(
    path: Path,
    title: str,
    declared: Declared,
    parts: Mapping[str, Sequence[Any]],
    read: Callable[[Any], Row],
    attributes: Mapping[str, str | int] | None = None,
) -> dict[str, int]:
    """Write a data file, which appears at ``path`` only when all went well; return the samples by part.

    parts: by split (``"train"``) or split and task (``"train/amazon"``), what ``read`` makes a row of. One
    row at a time is in memory. Raises `MtlbenchError` for an empty part and for a row that does not fit.
    """
    for part, items in parts.items():
        if not len(items):
            raise MtlbenchError(f"{title}: the split '{part}' would be empty; nothing was written")
    tasks = {task.name: task for task in make_tasks(declared)}
    counts = {}
    with hdf5_writer(path) as file, progress(path.name, sum(map(len, parts.values()))) as advance:
        for part, items in parts.items():
            table = file.table(f"{part}/")
            rows = _Part(table, tasks)
            for item in items:
                try:
                    row = read(item)
                except BrokenFileError as error:
                    raise MtlbenchError(
                        f"{title}: {part}: {error}; nothing was written; get this file again"
                    ) from error
                rows.append(row, f"{title}: {part}: {item[0] if isinstance(item, tuple) else item}")
                advance(1)
            table.flush()
            counts[part] = table.rows
        file.attributes({"format": FORMAT, "version": VERSION, "title": title})
        file.attributes({"tasks": json.dumps(declared), **(attributes or {})})
    return counts


class _Part:
    """One part of a file that is being written: its first row says what all are like."""

    def __init__(self, table: Table, tasks: Mapping[str, Task]) -> None:
        self._table, self._tasks = table, tasks
        self._shapes: dict[str, tuple[int, ...]] = {}

    def append(self, row: Row, where: str) -> None:
        values = {"inputs": row.inputs} | {
            f"targets/{name}": np.asarray(v) for name, v in row.targets.items()
        }
        if not self._shapes:
            for name, value in values.items():
                self._table.create(name, value.shape, self._kind(name, value))
            self._shapes = {name: value.shape for name, value in values.items()}
        for name, value in values.items():
            if value.shape != self._shapes[name]:
                raise MtlbenchError(
                    f"{where}: {name} have the shape {value.shape}, those before {self._shapes[name]}; "
                    "nothing was written"
                )
            if name != "inputs" and value.dtype.kind == "i" and value.size:
                count = _classes(self._tasks[name.removeprefix("targets/")])
                if not -1 <= value.min() <= value.max() < count:
                    raise MtlbenchError(
                        f"{where}: {name} must be labels in 0..{count - 1} (-1: none), found "
                        f"{value.min()}..{value.max()}; nothing was written"
                    )
        self._table.append(**values)

    def _kind(self, name: str, value: NDArray[Any]) -> str:
        """Return the type to store: the smallest for labels, else the one that it has."""
        if name == "inputs" or value.dtype.kind != "i":
            return value.dtype.str
        return "i1" if _classes(self._tasks[name.removeprefix("targets/")]) <= 128 else "i2"


def _classes(task: Task) -> int:
    size = task.output.size if isinstance(task.output, Vector) else task.output.channels
    return max(size, 2)


# ---- reading -----------------------------------------------------------------------------------------------


class PreparedSplit(Split):
    """One part of an open file.

    targets: the array of each task, by the task's name. What fits the ``budget`` (bytes) is held in memory,
    else images and maps are read from the file when asked for. reading: what turns errors of a damaged file
    into one line.
    """

    def __init__(
        self,
        inputs: h5py.Dataset,
        targets: Mapping[str, h5py.Dataset],
        budget: int,
        reading: Callable[[], AbstractContextManager[None]],
    ) -> None:
        large = sum(a.size * a.dtype.itemsize for a in (inputs, *targets.values()) if a.ndim > 2)
        kind = MemoryRows if large <= budget else DiskRows
        length = inputs.shape[0]

        def rows(source: h5py.Dataset) -> Rows:
            return (kind if source.ndim > 2 else MemoryRows)(source, 0, length)

        self._length, self._reading = length, reading
        self.streamed = kind is DiskRows
        self._inputs = rows(inputs)
        self._targets = {name: rows(source) for name, source in targets.items()}

    def __len__(self) -> int:
        return int(self._length)

    def fetch(self, indices: Tensor) -> Batch:
        """Return inputs ``[B, C, H, W]`` (stored channels last) or ``[B, F]``, and the targets."""
        with self._reading():
            inputs = self._inputs.take(indices)
            targets = {name: _target(rows.take(indices)) for name, rows in self._targets.items()}
        if inputs.dtype != torch.uint8:
            inputs = inputs.float()
        return Batch(_channels_first(inputs), targets)


def _channels_first(values: Tensor) -> Tensor:
    return values.permute(0, 3, 1, 2) if values.dim() == 4 else values


def _target(stored: Tensor) -> Tensor:
    """Return what a loss takes: labels int64 with -1 for none, or float32 with its channels first."""
    if stored.is_floating_point():
        values = stored.float()
        return _channels_first(values) if values.dim() in (2, 4) else values.unsqueeze(1)
    labels = stored.long()
    return labels.masked_fill_(stored == UNLABELLED_BYTE, -1) if stored.dtype == torch.uint8 else labels


def refuse_broken(source: Path, broken: Sequence[str], count: int) -> None:
    """Raise `MtlbenchError` where samples in ``source`` are ``broken``, of ``count`` in all."""
    if broken:
        raise MtlbenchError(
            f"{source}: {len(broken)} of {count} samples cannot be read, the first because of "
            f"{broken[0]}: get these files again"
        )


class PreparedFile:
    """An open data file, checked for being one.

    declared: its tasks as declared, `tasks` as tasks. remedy: what errors advise.
    """

    def __init__(self, path: Path, remedy: str) -> None:
        self._path, self._remedy = path, remedy
        self._file = open_hdf5(path, remedy)
        with explained(path, remedy):
            self.attributes: dict[str, Any] = dict(self._file.attrs)
        found = (self.attributes.get("format"), self.attributes.get("version"))
        if found != (FORMAT, VERSION):
            self._refuse(f"is not of the format '{FORMAT}' version {VERSION}")
        self.declared: dict[str, dict[str, Any]] = self._read_tasks()
        self.tasks = make_tasks(self.declared, where=f"{path}: ")
        self.title = str(self.attributes.get("title", path.stem))
        with explained(path, remedy):
            missing = [name for name in SPLITS if not isinstance(self._file.get(name), h5py.Group)]
            if missing:
                self._refuse(f"has no group '{missing[0]}'")
            self.per_task = "inputs" not in self._file["train"]
            first = self._inputs(f"train/{self.tasks[0].name}" if self.per_task else "train")
        *space, channels = first.shape[1:]
        self.input_shape: tuple[int, ...] = (channels, *space)

    def counts(self) -> dict[str, int]:
        """Return the samples by split (by ``split/task`` where each task has inputs of its own)."""
        parts = [
            f"{name}/{task.name}" if self.per_task else name
            for name in SPLITS
            for task in (self.tasks if self.per_task else self.tasks[:1])
        ]
        with explained(self._path, self._remedy):
            return {part: int(self._inputs(part).shape[0]) for part in parts}

    def split(
        self, name: SplitName, arrays: Mapping[str, str] | None = None, budget: int = MEMORY_BUDGET
    ) -> Split | dict[str, Split]:
        """Return one split, or one a task. arrays: the target array of each task; None: as the tasks."""
        arrays = arrays or {task.name: task.name for task in self.tasks}
        with explained(self._path, self._remedy):
            if self.per_task:
                return {task: self._part(f"{name}/{task}", {task: arrays[task]}, budget) for task in arrays}
            return self._part(name, arrays, budget)

    def _part(self, group: str, arrays: Mapping[str, str], budget: int) -> PreparedSplit:
        inputs = self._inputs(group)
        length, *space, _ = inputs.shape
        kinds = {task.name: task for task in self.tasks}
        targets = {}
        for task, name in arrays.items():
            found = self._file.get(f"{group}/targets/{name}")
            if not isinstance(found, h5py.Dataset):
                self._refuse(f"has no array '{group}/targets/{name}'")
            wanted = _stored_shapes(kinds[name], length, tuple(space))
            if found.shape not in wanted:
                have, want = list(found.shape), " or ".join(str(list(shape)) for shape in wanted)
                self._refuse(f": '{group}/targets/{name}' is {have}, not {want}")
            labels = isinstance(kinds[name].loss, CrossEntropy | BinaryCrossEntropy)
            if found.dtype.str[1:] not in (("u1", "i1", "i2", "i4", "i8") if labels else ("f2", "f4", "f8")):
                what = "int8, int16, int32, int64 or uint8" if labels else "float16, float32 or float64"
                self._refuse(f": '{group}/targets/{name}' is {found.dtype}, not {what}")
            targets[task] = found
        return PreparedSplit(inputs, targets, budget, partial(explained, self._path, self._remedy))

    def _inputs(self, group: str) -> h5py.Dataset:
        found = self._file.get(f"{group}/inputs")
        if not isinstance(found, h5py.Dataset):
            self._refuse(f"has no array '{group}/inputs'")
        if found.ndim not in (2, 4) or found.dtype.str[1:] not in ("u1", "f2", "f4", "f8"):
            self._refuse(
                f": '{group}/inputs' is {found.dtype} {list(found.shape)}, not uint8 or float [N, H, W, C] "
                "or [N, F]"
            )
        return found

    def _read_tasks(self) -> dict[str, dict[str, Any]]:
        try:
            declared = json.loads(self.attributes.get("tasks", ""))
        except (TypeError, ValueError):
            declared = None
        if not isinstance(declared, dict) or not declared:
            self._refuse("has no attribute 'tasks' with a JSON object of tasks")
        return dict(declared)

    def _refuse(self, what: str) -> NoReturn:
        raise MtlbenchError(f"{self._path}{'' if what.startswith(':') else ' '}{what}: {self._remedy}")


def _stored_shapes(task: Task, length: int, space: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes that a task's target array may have."""
    labels = isinstance(task.loss, CrossEntropy | BinaryCrossEntropy)
    lead: tuple[int, ...] = (length,) if isinstance(task.output, Vector) else (length, *space)
    size = task.output.size if isinstance(task.output, Vector) else task.output.channels
    if labels:
        return [lead]
    return [(*lead, size), lead] if size == 1 else [(*lead, size)]


# ---- datasets ----------------------------------------------------------------------------------------------


class PreparedDataset(Dataset):
    """A dataset that is prepared into a data file ``NAME-SIZE.h5`` of the data folder, and read from there.

    A subclass states `name`, `declared` and `default_size` and says with `parts` and `row` how published
    files become rows; one that needs none (`generated`) is written when it is first opened.
    size: height of the images, None for the one that is prepared.
    """

    name: ClassVar[str]
    declared: ClassVar[Declared]
    default_size: ClassVar[int]
    generated: ClassVar[str] = ""
    """For a dataset that makes its own data: what made it and in which version; another one makes it anew."""

    def __init_subclass__(cls, **given: Any) -> None:
        """Make the tasks of what a subclass declares, so that they are known before anything is prepared."""
        super().__init_subclass__(**given)
        if "declared" in vars(cls) and "tasks" not in vars(cls):
            cls.tasks = make_tasks(cls.declared)

    def __init__(self, data_dir: Path, size: int | None = None, memory: int = MEMORY_BUDGET) -> None:
        self._memory = memory
        self._file = self._generated(data_dir, size) if self.generated else self._prepared(data_dir, size)
        there = self._file.declared
        if any(_stored(self.declared.get(task, {})) != _stored(found) for task, found in there.items()):
            raise MtlbenchError(
                f"{self.name}: the prepared file has other tasks than this version of mtlbench; run: "
                f"{self._command(data_dir, size)}"
            )
        self.title = self._file.title
        self.tasks = make_tasks({task: self.declared[task] for task in there})
        self.input_shape = self._file.input_shape
        self.partial = may_lack(self.declared)
        self.arrays = {task.name: task.name for task in self.tasks}
        """The target array that each task reads."""
        self._splits: dict[SplitName, Split | Mapping[str, Split]] = {}

    def split(self, name: SplitName) -> Split | Mapping[str, Split]:
        """Return one split; it is read into memory at the first call where it fits."""
        if name not in self._splits:
            self._splits[name] = self._file.split(name, self.arrays, self._memory)
        return self._splits[name]

    @classmethod
    def prepared(cls, data_dir: Path) -> Mapping[Path, Mapping[str, int]]:
        """Return the data files that are there, with the samples by split (or split and task)."""
        sizes = prepared_sizes(data_dir, cls.name)
        files = [(size, data_dir / f"{cls.name}-{size}.h5") for size in sizes]
        return {path: PreparedFile(path, f"run: {cls._command(data_dir, n)}").counts() for n, path in files}

    @classmethod
    def check_source(cls, source: Path, report: Callable[[str], None]) -> int:
        """Read the published files in ``source``, name those that cannot be read, and return the samples."""
        if cls.generated:
            return super().check_source(source, report)
        if not source.is_dir():
            raise MtlbenchError(f"--source {source}: there is no such folder")
        broken, count = [], 0
        with translated(f"cannot read {source}", "name another folder with --source"):
            parts = cls.parts(source)
            total = sum(map(len, parts.values()))
            with progress(f"reading {source.name}", total) as advance:
                for part, items in parts.items():
                    for item in items:
                        try:
                            cls.row(source, item, cls.default_size)
                        except BrokenFileError as error:
                            broken.append(str(error))
                            report(f"{part}: {error}")
                        count += 1
                        advance(1)
        refuse_broken(source, broken, count)
        return count

    @classmethod
    def found(cls, source: Path) -> Declared:
        """Return which of `declared` the published files in ``source`` have labels for: by default all."""
        return cls.declared

    @classmethod
    def parts(cls, source: Path) -> Mapping[str, Sequence[Any]]:
        """Return, by split (or split and task), what `row` makes samples of; see `write`."""
        raise NotImplementedError

    @classmethod
    def row(cls, source: Path, item: Any, size: int) -> Row:
        """Return one sample."""
        raise NotImplementedError

    @classmethod
    def prepare(
        cls, data_dir: Path, source: Path | None, size: int | None, report: Callable[[str], None]
    ) -> Path:
        """Convert the published files in ``source`` into the data file, and return its path."""
        size = check_height(cls.default_size if size is None else size)
        path = data_dir / f"{cls.name}-{size}.h5"
        if cls.generated:
            cls._write(path, Path(), size)
            return path
        if source is None:
            raise MtlbenchError(
                f"{cls.name} cannot be downloaded by mtlbench; {cls.download} Then run: "
                f"mtlbench data prepare {cls.name} --source DIR"
            )
        if not source.is_dir():
            raise MtlbenchError(f"--source {source}: there is no such folder")
        with translated(f"cannot read {source}", "name another folder with --source"):
            counts = cls._write(path, source, size)
        report("split: " + ", ".join(f"{count} {part}" for part, count in counts.items()))
        return path

    @classmethod
    def _write(cls, path: Path, source: Path, size: int) -> dict[str, int]:
        origin = {"generated": cls.generated} if cls.generated else {}
        parts = cls.parts(source)
        return write(
            path,
            cls.title,
            cls.found(source),
            parts,
            lambda item: cls.row(source, item, size),
            {"size": size, **origin},
        )

    @classmethod
    def _command(cls, data_dir: Path, size: int | None) -> str:
        sized = f" --size {size}" if size else ""
        return f"mtlbench data prepare {cls.name}{sized} --source DIR --data-dir {data_dir}"

    @classmethod
    def _prepared(cls, data_dir: Path, size: int | None) -> PreparedFile:
        there = prepared_sizes(data_dir, cls.name)
        if size is None and len(there) > 1:
            raise MtlbenchError(
                f"{cls.name} is prepared in several sizes ({', '.join(map(str, there))}): say which, such as "
                f"{cls.name}[size={there[0]}]"
            )
        if not there or (size is not None and check_height(size) not in there):
            what = f"{cls.name} of size {size}" if size is not None else cls.name
            found = f"prepared there: {', '.join(map(str, there))}" if there else "nothing is prepared there"
            hint = f" {cls.download}" if cls.download and not there else ""
            raise MtlbenchError(
                f"{what} is not in {data_dir} ({found}).{hint} Run: {cls._command(data_dir, size)}"
            )
        size = there[0] if size is None else size
        return PreparedFile(data_dir / f"{cls.name}-{size}.h5", f"run: {cls._command(data_dir, size)}")

    @classmethod
    def _generated(cls, data_dir: Path, size: int | None) -> PreparedFile:
        size = check_height(cls.default_size if size is None else size)
        path = data_dir / f"{cls.name}-{size}.h5"
        remedy = "delete it, it is made again"
        if path.exists():
            file = PreparedFile(path, remedy)
            if file.attributes.get("generated") == cls.generated:
                return file
        cls._write(path, Path(), size)
        return PreparedFile(path, remedy)


def _stored(declared: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a task's declaration says what its array holds; how it moves is not up to the file."""
    return {key: value for key, value in declared.items() if key not in ("fixed", "inverse", "mirror")}


def prepared_sizes(data_dir: Path, name: str) -> list[int]:
    """Return the sizes of a dataset that are prepared in the folder, smallest first."""
    names = (
        re.fullmatch(rf"{re.escape(name)}-(\d+)\.h5", path.name) for path in data_dir.glob(f"{name}-*.h5")
    )
    return sorted(int(match[1]) for match in names if match)


def check_height(size: int) -> int:
    """Return ``size`` where images of that height can be made, else raise `MtlbenchError`."""
    if size not in SIZES:
        raise MtlbenchError(
            f"size must be a multiple of {SIZES.step} from {SIZES[0]} to {SIZES[-1]}, not {size}; try 128"
        )
    return size
