"""Anybody's own data in one HDF5 file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mtlbench.contracts import Dataset, Split, SplitName
from mtlbench.data.hdf5 import MEMORY_BUDGET
from mtlbench.data.prepared import PreparedFile
from mtlbench.errors import MtlbenchError
from mtlbench.tasks import may_lack


class Hdf5(Dataset):
    """Your own HDF5 file, with tasks that its attributes declare.

    path: the file, in the layout that docs/data-schema.md describes: groups train, val and test, each with
    the array inputs and the group targets, and an attribute that lists the tasks. It is read in place.
    Tables ``[N, F]`` need an encoder for them, such as ``--encoder mlp``.
    """

    licence = "your own data"

    def __init__(self, path: str, memory: int = MEMORY_BUDGET) -> None:
        self._memory = memory
        if not Path(path).is_file():
            raise MtlbenchError(f"hdf5: parameter 'path': there is no file '{path}'")
        self._file = PreparedFile(Path(path), "see docs/data-schema.md for the layout")
        self.title = self._file.title
        self.tasks = self._file.tasks
        self.input_shape = self._file.input_shape
        self.partial = may_lack(self._file.declared)
        self._splits: dict[SplitName, Split | Mapping[str, Split]] = {}

    def split(self, name: SplitName) -> Split | Mapping[str, Split]:
        """Return one split; it is read into memory at the first call where it fits."""
        if name not in self._splits:
            self._splits[name] = self._file.split(name, budget=self._memory)
        return self._splits[name]
