"""Records on disk: never torn, never lost, never overwritten."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from mtlbench.atomic import claimed, create, remove_abandoned, translated
from mtlbench.errors import MtlbenchError
from mtlbench.results.record import Cost, Record

_NAME = re.compile(r"(?P<run_id>[0-9a-f]{16})(\.(?P<attempt>\d+))?\.json")


class Store:
    """A folder of records: ``<dataset>/<architecture>+<weighting>/<run_id>.json``.

    A further attempt at the same run is ``<run_id>.2.json`` and so on; what a run cost lies beside its
    record as ``<run_id>.cost``; so do, where they were kept, the selected model (``<run_id>.pt``) and where
    its time went (``<run_id>.profile``). Checkpoints of unfinished runs are in ``.checkpoints``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def check(self) -> None:
        """Raise `MtlbenchError` unless files can be written here; call it before hours of training."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise MtlbenchError(
                f"results folder '{self.root}' can't be written: {error.strerror};"
                " choose another with --results"
            ) from None

    def checkpoint(self, run_id: str) -> Path:
        """Return where the checkpoint of an unfinished run lies."""
        return self.root / ".checkpoints" / f"{run_id}.pt"

    def claim(self, run_id: str) -> AbstractContextManager[bool]:
        """Hold the run for this process while the block goes on; gives False where another one trains it."""
        return claimed(self.root / ".checkpoints" / f"{run_id}.lock")

    def held(self, run_id: str) -> bool:
        """Say whether another process trains the run now."""
        with self.claim(run_id) as free:
            return not free

    def find(self, folder: tuple[str, str], run_id: str) -> Record | None:
        """Return the latest attempt at a run, or None."""
        path = self._latest(folder, run_id)
        return None if path is None else self.read(path)

    def cost(self, record: Record) -> Cost | None:
        """Return what the run cost, where that was measured and kept."""
        path = self._path(record).with_suffix(".cost")
        return Cost.loads(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None

    @staticmethod
    def texts(path: Path) -> tuple[str, str | None]:
        """Return the text of a record's file, and of what its run cost where that is there."""
        text = path.read_text(encoding="utf-8", errors="replace")
        try:
            return text, path.with_suffix(".cost").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return text, None

    def records(self) -> Iterator[Record]:
        """Yield every record, in the order of their paths."""
        yield from map(self.read, self.paths())

    def tidy(self) -> None:
        """Remove the temporary files that killed writers left; those of living ones stay."""
        for path in self.root.rglob(".*.tmp"):
            remove_abandoned(path)

    def paths(self) -> list[Path]:
        """Return the files of all records, sorted."""
        found = (path for path in self.root.glob("*/*/*.json") if _NAME.fullmatch(path.name))
        return sorted(found, key=str)  # which each of them needs to be opened; paths compare slowly

    def add(self, record: Record, cost: Cost, *, again: bool = False) -> Record:
        """Keep a record and return what the store now holds for the run.

        The first writer wins: where the record is there already, that one stays and is returned. With
        ``again`` the record is kept as the next attempt instead.
        """
        where = self._path(record)
        with translated(f"can't write record '{where}'", "choose another --results"):
            while not create(self._path(record), record.dumps()):
                if not again:
                    kept = self.find(record.folder, record.run_id)
                    if kept is not None:
                        return kept
                attempt = int(record.values["attempt"]) + 1
                record = replace(record, values={**record.values, "attempt": attempt})
            create(self._path(record).with_suffix(".cost"), cost.dumps())
        return record

    def model(self, record: Record) -> Path:
        """Return where the run's model lies if it was kept: a checkpoint, see `training.checkpoint`."""
        return self._path(record).with_suffix(".pt")

    def add_model(self, record: Record, content: bytes) -> None:
        """Keep the model of a record that is there; the first writer wins."""
        where = self.model(record)
        with translated(f"can't write model '{where}'", "choose another --results, or --no-save-model"):
            create(where, content)

    def profile(self, record: Record) -> Path:
        """Return where it is kept where the run's time went, if that was measured."""
        return self._path(record).with_suffix(".profile")

    def add_profile(self, record: Record, text: str) -> None:
        """Keep where the time of a run went, beside its record; the first writer wins."""
        where = self.profile(record)
        with translated(f"can't write profile '{where}'", "choose another --results, or --no-profile"):
            create(where, text)

    def merge(self, record: Record, cost: Cost | None) -> Record | None:
        """Keep a record of another store under the same attempt; return the one that was there, if any."""
        where = self._path(record)
        with translated(f"can't write record '{where}'", "choose another folder"):
            if not create(where, record.dumps()):
                return self.read(where)
            if cost is not None:
                create(where.with_suffix(".cost"), cost.dumps())
        return None

    def _path(self, record: Record) -> Path:
        attempt = int(record.values["attempt"])
        stem = record.run_id if attempt == 1 else f"{record.run_id}.{attempt}"
        return self.root.joinpath(*record.folder, f"{stem}.json")

    def _latest(self, folder: tuple[str, str], run_id: str) -> Path | None:
        found = []
        for path in self.root.joinpath(*folder).glob(f"{run_id}*.json"):
            match = _NAME.fullmatch(path.name)
            if match:
                found.append((int(match["attempt"] or 1), path))
        return max(found)[1] if found else None

    @staticmethod
    def read(path: Path) -> Record:
        """Read the record in a file; `MtlbenchError` where it is none."""
        return Record.loads(path.read_text(encoding="utf-8", errors="replace"), str(path))
