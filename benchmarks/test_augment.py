"""Augmentation of a batch: scenes of 288 x 384 with classes, depth and normals, zoomed and flipped.

Run: make bench, or python -m pytest benchmarks/test_augment.py --benchmark-enable --benchmark-only [--quick]

Beside ours stand the steps of the published NYUv2 recipe, one sample after another on float images, as data
loaders of the field do them; its pixels differ by where corners are aligned. Both on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from tables import Tables
from torch import Tensor
from torch.nn import functional
from turns import Turns

from mtlbench.contracts import Batch
from mtlbench.data.augment import Augment, choose
from mtlbench.tasks import depth, normals, segmentation

SIZE, COUNT = (288, 384), 8
TASKS = (segmentation("segmentation", 13), depth("depth"), normals("normals"))


def scenes() -> Batch:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, *SIZE, 3), dtype=torch.uint8, generator=draw)
    directions = functional.normalize(torch.randn(COUNT, 3, *SIZE, generator=draw), dim=1)
    labels = torch.randint(-1, 13, (COUNT, *SIZE), generator=draw)
    reach = torch.rand(COUNT, 1, *SIZE, generator=draw) + 0.5
    targets = {"segmentation": labels, "depth": reach, "normals": directions}
    return Batch(images.permute(0, 3, 1, 2), targets)


def published(image: Tensor, targets: Sequence[Tensor], draw: torch.Generator) -> list[Tensor]:
    """Zoom and flip one sample: image float ``[3, H, W]``, labels, depth and normals."""
    labels, reach, directions = targets
    factor = (1.0, 1.2, 1.5)[int(torch.randint(3, (), generator=draw))]
    height, width = (int(side / factor) for side in SIZE)
    top = int(torch.randint(SIZE[0] - height + 1, (), generator=draw))
    left = int(torch.randint(SIZE[1] - width + 1, (), generator=draw))

    def shown(values: Tensor, mode: str) -> Tensor:
        window = values[None, :, top : top + height, left : left + width]
        corners = {} if mode == "nearest" else {"align_corners": True}
        return functional.interpolate(window, SIZE, mode=mode, **corners)[0]  # type: ignore[arg-type]

    found = [
        shown(image, "bilinear"),
        shown(labels[None].float(), "nearest")[0].long(),
        shown(reach, "nearest") / factor,
        shown(directions, "bilinear"),
    ]
    if torch.rand((), generator=draw) < 0.5:
        found = [values.flip(-1) for values in found]
        found[3][0] *= -1
    return found


def test_augment(benchmark: Any, tables: Tables) -> None:
    batch, draw = scenes(), torch.Generator().manual_seed(1)
    augment = Augment(choose(["scale", "flip"]), TASKS, "scenes", (3, *SIZE))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def ours() -> Batch:
        return augment(
            batch, lambda name, count: torch.rand(COUNT, count, dtype=torch.float64, generator=draw)
        )

    def others() -> list[Tensor]:
        images = batch.inputs.float() / 255
        samples = [
            published(image, targets, draw)
            for image, *targets in zip(images, *batch.targets.values(), strict=True)
        ]
        return [torch.stack(values) for values in zip(*samples, strict=True)]

    try:
        turns = Turns({"ours": ours, "recipe": others}, clock=time.process_time)
        turns.run(benchmark, 3 if tables.quick else 10)
    finally:
        torch.set_num_threads(threads)
    name = f"Augmenting {COUNT} scenes of {SIZE[0]} x {SIZE[1]}: scale, flip"
    for step in turns.steps:
        tables.cell(name, step, "ms", f"{turns.seconds(step) * 1e3:.1f}")
    tables.ratio(name, "ours", "times faster", turns.ahead("ours", "recipe"))
