"""Anybody's own table: CSV, NPZ or Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlbench.contracts import SPLITS, Dataset, SplitName, Task
from mtlbench.data.memory import MemorySplit
from mtlbench.data.splits import hashed
from mtlbench.errors import MtlbenchError, did_you_mean
from mtlbench.tasks import classification, regression
from mtlbench_zoo.datasets._columns import Column, read_columns

MOST_CLASSES = 100
"""A whole-numbered column with more values than this is regressed, and a text feature with more refused."""


class Table(Dataset):
    """Your own table, with any of its columns as tasks: ``table[path=cars.csv,targets=[price,brand]]``.

    path: a file .csv (with a header), .npz (an array a column; ``x`` of two dimensions is x0, x1, ...) or
    .parquet (needs ``mtlbench[parquet]``). targets: the columns to predict. One of texts, or of whole numbers
    with at most 100 different ones, is a classification (accuracy, F1); any other is a regression, trained
    on the standardised value (MSE) and reported in its own unit (MAE, RMSE). regression: targets that shall
    be regressed although they are whole numbers. ignore: columns to leave out; all others are features.

    split: a column that says train, val or test. Without it, rows are split by fractions (three numbers that
    add up to 1), in the order of the SHA-256 of their number in the file.

    Features are standardised with mean and standard deviation of the training rows; a missing one becomes
    that mean. Text features become one 0/1 column for each text that training rows have. A missing target
    (empty, NA, NaN, null, ?) is masked in loss and metrics. Inputs float32 ``[B, F]``; targets int64 ``[B]``
    or float32 ``[B, 1]``.
    """

    encoder = "mlp"
    title = "table"
    licence = "your own data"

    def __init__(
        self,
        path: str,
        targets: Sequence[str],
        split: str | None = None,
        fractions: Sequence[float] = (0.6, 0.2, 0.2),
        regression: Sequence[str] = (),
        ignore: Sequence[str] = (),
    ) -> None:
        self.title = f"table ({Path(path).name})"
        columns = read_columns(Path(path))
        named = [*targets, *regression, *ignore, *([split] if split else [])]
        for name in named:
            if name not in columns:
                near = did_you_mean(name, columns)
                raise MtlbenchError(f"{path} has no column '{name}'.{near} Columns: {', '.join(columns)}")
        if not targets or len(set(targets)) < len(targets) or set(regression) - set(targets):
            raise MtlbenchError(
                f"{self.title}: targets must name one column or more, each once, and those of regression: "
                f"found targets {list(targets)}, regression {list(regression)}"
            )
        features = {name: column for name, column in columns.items() if name not in named}
        if not features:
            raise MtlbenchError(f"{self.title}: every column is a target, the split or ignored: no features")
        count = len(columns[targets[0]].values)
        rows = self._by_column(columns[split], split) if split else self._by_fractions(count, fractions)
        inputs = torch.from_numpy(
            np.concatenate([self._feature(n, c, rows["train"]) for n, c in features.items()], axis=1)
        )
        made = {
            name: self._target(name, columns[name], rows["train"], name in regression) for name in targets
        }
        self.tasks = tuple(task for task, _ in made.values())
        self.input_shape = (inputs.shape[1],)
        self.partial = any(bool(columns[name].missing().any()) for name in targets)
        self._splits = {
            name: MemorySplit(inputs[index], {task: values[index] for task, (_, values) in made.items()})
            for name, index in rows.items()
        }

    def split(self, name: SplitName) -> MemorySplit:
        """Return one split."""
        return self._splits[name]

    def _by_column(self, column: Column, name: str) -> dict[SplitName, NDArray[np.int64]]:
        """Return the rows of each split as the column says."""
        found = set(column.values.tolist()) - set(SPLITS)
        if found:
            raise MtlbenchError(
                f"{self.title}: column '{name}' must say train, val or test, found {min(map(str, found))!r}"
            )
        return {split: np.flatnonzero(column.values == split) for split in SPLITS}

    def _by_fractions(self, count: int, fractions: Sequence[float]) -> dict[SplitName, NDArray[np.int64]]:
        if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-9:
            raise MtlbenchError(
                f"{self.title}: fractions must be three numbers above 0 that add up to 1, found "
                f"{list(fractions)}"
            )
        order = np.array([int(name) for name in hashed(map(str, range(count)))])
        edges = np.round(np.cumsum(fractions)[:2] * count).astype(int)
        train, val, test = np.split(order, edges)
        return {"train": train, "val": val, "test": test}

    def _feature(self, name: str, column: Column, train: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return a feature as columns ``[N, ...]``, standardised with what the training rows have."""
        if column.kind == "text":
            texts = sorted({text for text in column.values[train] if text is not None})
            if len(texts) > MOST_CLASSES:
                raise MtlbenchError(
                    f"{self.title}: column '{name}' has {len(texts)} different texts, too many for a "
                    f"feature; leave it out with ignore=[{name}]"
                )
            return np.asarray(column.values[:, None] == np.array(texts, dtype=object), np.float32)
        self._finite(name, column)
        mean, std = _statistics(column.values[train])
        values = (column.values - mean) / (std or 1)
        return np.nan_to_num(values, nan=0).astype(np.float32)[:, None]

    def _target(
        self, name: str, column: Column, train: NDArray[np.int64], regressed: bool
    ) -> tuple[Task, Tensor]:
        lost = column.missing()
        if lost[train].all():
            raise MtlbenchError(f"{self.title}: no training row has a value of '{name}'")
        known = column.values[~lost]
        different = sorted(set(known.tolist()))
        if column.kind == "text" or (
            column.kind == "whole" and not regressed and len(different) <= MOST_CLASSES
        ):
            if regressed or len(different) < 2:
                rule = (
                    "texts cannot be regressed" if regressed else f"it has one value only, {different[0]!r}"
                )
                raise MtlbenchError(f"{self.title}: target '{name}': {rule}")
            labels = np.full(len(lost), -1, np.int64)
            labels[~lost] = np.searchsorted(np.array(different), known.astype(np.array(different).dtype))
            return classification(name, len(different)), torch.from_numpy(labels)
        self._finite(name, column)
        mean, std = _statistics(column.values[train])
        if not std:
            raise MtlbenchError(f"{self.title}: target '{name}' is the same in all training rows: {mean:g}")
        values = ((column.values - mean) / std).astype(np.float32)[:, None]
        return regression(name, scale=float(std)), torch.from_numpy(values)

    def _finite(self, name: str, column: Column) -> None:
        if np.isinf(column.values).any():
            row = int(np.flatnonzero(np.isinf(column.values))[0]) + 1
            raise MtlbenchError(f"{self.title}: row {row} of column '{name}' is infinite")


def _statistics(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return mean and standard deviation of what is not missing; (0, 0) where everything is."""
    there = values[~np.isnan(values)]
    return (float(there.mean()), float(there.std())) if len(there) else (0.0, 0.0)
