"""Where samples come from: tasks, splits and a fingerprint of what the loader yields."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from mtlbench.contracts.task import Task
from mtlbench.errors import MtlbenchError

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)


@dataclass(frozen=True)
class Batch:
    """Some samples of one split.

    inputs: ``[B, C, H, W]`` (or ``[B, F]`` for tables), uint8 in 0..255 or float32; the training loop
    moves uint8 to the device as it is and divides by 255 there. targets: per task ``[B, ...]``, int64 with
    -1 or float32 with NaN where a sample has no label.
    """

    inputs: Tensor
    targets: Mapping[str, Tensor]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``, with inputs as float32 (uint8 scaled to 0..1)."""
        inputs = self.inputs.to(device, non_blocking=True)
        if inputs.dtype == torch.uint8:
            inputs = inputs.float().div_(255)
        return Batch(inputs, {k: v.to(device, non_blocking=True) for k, v in self.targets.items()})


Change = Callable[[Batch, Tensor], Batch]
"""What makes of a batch that was read, and the indices (int64 ``[B]``) it was read at, what is used
instead."""


class Split(ABC):
    """Samples that are read by index, a batch at a time.

    Several threads may call `fetch` at once, so it keeps nothing between two calls that would mind; and what
    it gives hangs on the indices alone.
    """

    streamed: bool = False
    """Whether `fetch` takes time (it reads from a disk, or derives targets), so that it pays to do it while a
    step is computed."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def fetch(self, indices: Tensor) -> Batch:
        """Return the samples at ``indices`` (int64 ``[B]``), in that order."""

    def changed(self, change: Change) -> Split:
        """Return these samples changed as they are read, before any target is derived from them.

        change: a function of what it is given and of nothing else, since threads may call it at once.
        """
        return _Changed(self, change)


class _Changed(Split):
    streamed = True  # to change a batch takes time, as to read one does

    def __init__(self, split: Split, change: Change) -> None:
        self._split, self._change = split, change

    def __len__(self) -> int:
        return len(self._split)

    def fetch(self, indices: Tensor) -> Batch:
        return self._change(self._split.fetch(indices), indices)


class Dataset(ABC):
    """Tasks and their train, val and test splits.

    The constructor may ask for ``data_dir`` (the folder that holds prepared data) and ``memory`` (bytes of a
    split that it may hold in memory); its other arguments
    are the dataset's parameters. It opens what it needs and raises `MtlbenchError` with one clear line
    where that is missing or broken.

    What people ask before they use it stands in class attributes: `licence`, `citation`, `homepage` and
    `download`; and `title` and `tasks`, where they are the same for all parameters.

    Two modes: *joint*, where one input carries all targets and `split` returns one `Split`; and
    *per-task*, where each task has inputs of its own and `split` returns one `Split` a task.
    """

    context: ClassVar[tuple[str, ...]] = ("data_dir", "memory")
    encoder: ClassVar[str] = "unet"
    """The encoder that is used unless another is asked for."""

    title: str
    """What the data is called in tables; a stand-in says so here."""
    tasks: tuple[Task, ...]
    input_shape: tuple[int, ...]
    """Shape of one input without the batch dimension, such as ``(3, 64, 64)``."""
    partial: bool = False
    """Whether a sample may lack a target. Where it is False, the loop need not look."""
    notice: str | None = None
    """A line to print when a run starts; None for none."""

    licence: ClassVar[str] = ""
    """What the data may be used for, such as ``"CC BY-SA 4.0"``."""
    citation: ClassVar[str] = ""
    """Whom to cite who publishes numbers on it."""
    homepage: ClassVar[str] = ""
    """Where it is described or comes from, an address."""
    download: ClassVar[str] = ""
    """What to download, how large it is, and where to put it; empty where nothing is needed."""
    without: ClassVar[str] = ""
    """What a run reads where nothing is prepared, such as a built-in sample; empty where there is none."""

    @abstractmethod
    def split(self, name: SplitName) -> Split | Mapping[str, Split]:
        """Return one `Split` (joint mode) or one for each task name (per-task mode)."""

    @property
    def per_task(self) -> bool:
        """Whether each task has inputs of its own."""
        return isinstance(self.split("train"), Mapping)

    def counts(self) -> dict[str, int]:
        """Return the number of samples by split (by ``split/task`` in per-task mode)."""
        found: dict[str, int] = {}
        for name in SPLITS:
            split = self.split(name)
            if isinstance(split, Mapping):
                found |= {f"{name}/{task}": len(part) for task, part in split.items()}
            else:
                found[name] = len(split)
        return found

    def fingerprint(self, look: Callable[[str, Batch], None] | None = None) -> str:
        """Return a hash of everything the loader yields: 16 hexadecimal digits.

        Two datasets have the same fingerprint exactly when all splits give the same samples, in the
        same order, with the same targets. look: is shown every batch on the way, with the name of its split
        (``split/task`` in per-task mode), since reading everything is what takes the time.
        """
        digest = hashlib.sha256()
        for name in SPLITS:
            split = self.split(name)
            parts = split.items() if isinstance(split, Mapping) else [("", split)]
            for part, samples in sorted(parts, key=lambda item: item[0]):
                digest.update(f"{name}/{part}:{len(samples)}".encode())
                for chunk in torch.split(torch.arange(len(samples)), 256):
                    batch = samples.fetch(chunk)
                    if look is not None:
                        look(f"{name}/{part}".rstrip("/"), batch)
                    for key, tensor in [("", batch.inputs), *sorted(batch.targets.items())]:
                        digest.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
                        digest.update(np.ascontiguousarray(tensor.numpy()).data)
        return digest.hexdigest()[:16]

    @classmethod
    def prepare(
        cls, data_dir: Path, source: Path | None, size: int | None, report: Callable[[str], None]
    ) -> Path:
        """Convert ``source`` (None: download it first) into the one file that runs read, and return its path.

        size: side of the square images, None for the dataset's default. report: receives lines to print.
        Atomic: when killed, nothing half-made is left in the way.
        """
        raise MtlbenchError(f"{cls.__name__} needs no preparation: run it as it is")

    @classmethod
    def prepared(cls, data_dir: Path) -> Mapping[Path, Mapping[str, int]]:
        """Return the data files that `prepare` left in the folder, each with its samples by split.

        Raises `MtlbenchError` where one is broken.
        """
        return {}

    @classmethod
    def check_source(cls, source: Path, report: Callable[[str], None]) -> int:
        """Read every file that `prepare` would read in ``source``, write nothing, and return the samples.

        report: receives lines to print. Raises `MtlbenchError` where one cannot be read.
        """
        raise MtlbenchError(f"{cls.__name__} reads no folder of published files: leave --source out")
