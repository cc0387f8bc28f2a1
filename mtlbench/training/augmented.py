"""The training samples of an epoch, augmented; what is drawn hangs on run, epoch and sample alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtlbench.contracts import Batch, Dataset, Split, Task
from mtlbench.data.augment import Augment
from mtlbench.training.seeds import uniforms


def build_augment(protocol: dict[str, Any], dataset: Dataset, tasks: Sequence[Task]) -> Augment | None:
    """Return the augmentations that a protocol names, for these tasks; None where it names none."""
    chosen = protocol.get("augment")
    return Augment(chosen, tasks, dataset.title, dataset.input_shape) if chosen else None


def augmented(split: Split, augment: Augment | None, seed: int, epoch: int, part: str) -> Split:
    """Return a training split as it is seen in an epoch; the split itself without augmentations.

    Every augmentation draws from a stream of its own for every sample. So neither order, batch, process nor
    resumption changes a draw, nor does another augmentation beside it. part: the task, where each has inputs
    of its own, else empty.
    """
    if augment is None:
        return split

    def change(batch: Batch, indices: Tensor) -> Batch:
        def draw(name: str, count: int) -> Tensor:
            streams = (("augment", name, epoch, part, index) for index in indices.tolist())
            drawn = [uniforms(count, seed, *stream) for stream in streams]
            return torch.tensor(drawn, dtype=torch.float64).view(len(batch.inputs), count)

        return augment(batch, draw)

    return split.changed(change)
