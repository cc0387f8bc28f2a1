"""Columns of a table from CSV, NPZ or Parquet."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mtlbench.errors import MtlbenchError

MISSING = frozenset({"", "na", "nan", "n/a", "null", "none", "?"})
"""Texts (in lower case, without blanks around them) that stand for a missing value."""


@dataclass(frozen=True)
class Column:
    """One column: numbers float64 ``[N]`` (NaN where missing) or texts (None where missing)."""

    kind: Literal["real", "whole", "text"]
    values: NDArray[Any]

    def missing(self) -> NDArray[np.bool_]:
        """Return which values are missing, bool ``[N]``."""
        if self.kind == "text":
            return np.array([value is None for value in self.values], dtype=bool)
        return np.asarray(np.isnan(self.values))


def read_columns(path: Path) -> dict[str, Column]:
    """Return the columns of a file by name, in its order; `MtlbenchError` where it cannot be read."""
    readers = {".csv": _csv, ".npz": _npz, ".parquet": _parquet}
    if path.suffix not in readers:
        raise MtlbenchError(f"{path}: a table must be one of {', '.join(readers)}, found '{path.suffix}'")
    if not path.is_file():
        raise MtlbenchError(f"{path}: there is no such file")
    columns = readers[path.suffix](path)
    lengths = {len(column.values) for column in columns.values()}
    if len(lengths) > 1:
        raise MtlbenchError(f"{path}: the columns have different lengths: {sorted(lengths)}")
    if not lengths or not max(lengths):
        raise MtlbenchError(f"{path} holds no rows")
    return columns


def _csv(path: Path) -> dict[str, Column]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = [row for row in csv.reader(file) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MtlbenchError(f"{path} cannot be read as CSV: {error}") from error
    names = [name.strip() for name in header]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise MtlbenchError(f"{path}: two columns are named '{min(twice)}'")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise MtlbenchError(f"{path}: row {number} has {len(row)} values for {len(names)} columns")
    return {name: _from_texts([row[i].strip() for row in rows]) for i, name in enumerate(names)}


def _from_texts(texts: Sequence[str]) -> Column:
    known = [text.lower() not in MISSING for text in texts]
    try:
        values = np.array(
            [float(text) if there else np.nan for text, there in zip(texts, known, strict=True)]
        )
    except ValueError:
        return _texts(text if there else None for text, there in zip(texts, known, strict=True))
    whole = all(text.lstrip("+-").isdigit() for text, there in zip(texts, known, strict=True) if there)
    return Column("whole" if whole else "real", values)


def _texts(values: Iterable[str | None]) -> Column:
    return Column("text", np.array(list(values), dtype=object))


def _npz(path: Path) -> dict[str, Column]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise MtlbenchError(f"{path} cannot be read as NPZ: {error}") from error
    columns: dict[str, Column] = {}
    for name, values in arrays.items():
        if values.ndim == 2:
            columns |= {f"{name}{i}": _from_array(path, name, values[:, i]) for i in range(values.shape[1])}
        else:
            columns[name] = _from_array(path, name, values)
    return columns


def _from_array(path: Path, name: str, values: NDArray[Any]) -> Column:
    if values.ndim != 1 or values.dtype.kind not in "fiubUS":
        raise MtlbenchError(f"{path}: array '{name}' is {values.dtype} {list(values.shape)}, not a column")
    if values.dtype.kind in "US":
        return _texts(text if text.lower() not in MISSING else None for text in values.astype(str).tolist())
    return Column("real" if values.dtype.kind == "f" else "whole", values.astype(np.float64))


def _parquet(path: Path) -> dict[str, Column]:
    try:
        from pyarrow import ArrowException, parquet, types
    except ImportError as error:
        raise MtlbenchError(
            f"{path}: Parquet needs pyarrow; run: pip install 'mtlbench[parquet]', or save the table as CSV"
        ) from error
    try:
        table = parquet.read_table(path)
    except (OSError, ArrowException) as error:
        raise MtlbenchError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind, values = column.type, column.to_pylist()
        if types.is_string(kind) or types.is_large_string(kind):
            columns[name] = _texts(values)
        elif types.is_integer(kind) or types.is_boolean(kind) or types.is_floating(kind):
            numbers = np.array([np.nan if value is None else float(value) for value in values])
            columns[name] = Column("real" if types.is_floating(kind) else "whole", numbers)
        else:
            raise MtlbenchError(f"{path}: column '{name}' is of the type {kind}, not numbers or texts")
    return columns
