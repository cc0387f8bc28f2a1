"""What lies between encoder and heads: gates, attention masks, mixing matrices, feature maps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mtlbench.contracts import Pyramid, Reading
from mtlbench.inspection import style
from mtlbench.inspection.passes import Seen, Shown
from mtlbench.inspection.picture import Picture, grid, number

CHANNELS = 6
"""Feature maps that are shown of one stage."""
LEAST_SPAN = 0.2
"""What the scale of attention masks spans at least, so that small differences look small."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def gates(seen: Seen) -> Picture | None:
    """Draw how every task weighs its experts over a split; None where nothing has gates."""
    found = seen.gates
    if not found:
        return None
    places = list(dict.fromkeys(reading.place for reading in found))
    by_place = [[reading for reading in found if reading.place == place] for place in places]
    columns = max(map(len, by_place))
    widest = max(reading.values.shape[1] for reading in found)
    size = (max(2.1, 0.5 * widest + 0.9), 2.3)
    title = f"Gates on the {seen.split} split"
    figure, axes = style.panels(len(places), columns, size, title, sharey=True)
    numbers: dict[str, Any] = {}
    for row, (place, readings) in enumerate(zip(places, by_place, strict=True)):
        for axis in axes[row, len(readings) :]:
            axis.remove()
        for axis, reading in zip(axes[row], readings, strict=False):
            values = reading.values.double().numpy()
            spread = np.quantile(values, QUANTILES, axis=0)
            x = np.arange(values.shape[1])
            axis.vlines(x, spread[0], spread[4], color="#a9c9e0", linewidth=2)
            axis.vlines(x, spread[1], spread[3], color=style.GOOD, linewidth=9)
            axis.plot(x, values.mean(0), "o", color="white", markeredgecolor=style.INK, markersize=4)
            axis.axhline(1 / len(x), color=style.PALE, linewidth=1, linestyle=":")
            names = _expert_names(reading)
            long = max(map(len, names)) * len(names) > 9 * size[0]
            axis.set_xticks(x, names, rotation=35 if long else 0, ha="right" if long else "center",
                            rotation_mode="anchor")  # fmt: skip
            axis.set_xlim(-0.6, len(x) - 0.4)
            axis.set_ylim(-0.03, 1.03)
            axis.grid(False, axis="x")
            axis.set_title(f"{reading.task or 'all tasks'}\n{place}")
            numbers.setdefault(place, {})[reading.task or "all tasks"] = {
                name: {
                    "mean": number(float(values[:, i].mean())),
                    "sd": number(float(values[:, i].std())),
                    "quantiles": [number(q) for q in spread[:, i].tolist()],
                }
                for i, name in enumerate(names)
            }
    return Picture(
        "gates",
        "Gates: which experts each task uses",
        f"How each task weighs the experts, over all {len(found[0].values)} samples of the {seen.split}"
        " split. Circle: mean; thick bar: the middle half of the samples; thin bar: 5 to 95 %; dotted line:"
        " equal shares. A short bar says that the gate does the same for every sample; tasks with equal"
        " pictures share.",
        figure,
        {
            "split": seen.split,
            "samples": len(found[0].values),
            "quantiles": list(QUANTILES),
            "gates": numbers,
        },
    )


def mixing(seen: Seen) -> Picture | None:
    """Draw how much of each task's features the others receive; None where nothing mixes tasks so."""
    found = [r for r in seen.shown[0].readings if r.kind == "mixing"]
    if not found:
        return None
    count = found[0].values.shape[-1]
    side = max(0.62 * count + 0.9, 2.2)
    rows, columns = style.grid_size(len(found), 5)
    figure, axes = style.panels(rows, columns, (side, side + 0.3), "Mixing matrices")
    limit = max(float(np.abs(_average(reading)[0]).max()) for reading in found)
    numbers = {}
    for axis, reading in zip(axes.flat, found, strict=False):
        mean, spread = _average(reading)
        texts = [
            [
                f"{m:.2f}" + (f"\n±{s:.2f}" if reading.values.dim() == 3 else "")
                for m, s in zip(*pair, strict=True)
            ]
            for pair in zip(mean, spread, strict=True)
        ]
        style.heat(axis, mean, texts, limit)
        names = reading.names or tuple(f"task {i + 1}" for i in range(count))
        axis.set_xticks(range(count), names, rotation=30, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(count), names if axis in axes[:, 0] else [""] * count)
        axis.set_xlabel("features of")
        axis.set_title(reading.place)
        numbers[reading.place] = {
            "tasks": list(names),
            "mean": [[number(v) for v in line] for line in mean.tolist()],
            "sd": [[number(v) for v in line] for line in spread.tolist()],
            "values": [number(v) for v in reading.values.flatten().tolist()],
            "shape": list(reading.values.shape),
        }
    for axis in axes[:, 0]:
        axis.set_ylabel("taken up by")
    for axis in list(axes.flat)[len(found) :]:
        axis.remove()
    return Picture(
        "mixing",
        "Mixing: what tasks take from each other",
        "After each stage, how much of a task's features (column) another task goes on with (row). A matrix"
        " with nothing beside its diagonal shares nothing. Where channels have matrices of their own, mean"
        " and standard deviation over the channels.",
        figure,
        {"matrices": numbers},
    )


def attention(seen: Seen) -> Iterator[Picture]:
    """Yield a picture for each task with attention masks: the image beside its masks, mean over channels."""
    for shown in seen.shown:
        found = [reading for reading in shown.readings if reading.kind == "attention"]
        for task in dict.fromkeys(reading.task for reading in found):
            yield _attention(seen, shown, task, [reading for reading in found if reading.task == task])


def _attention(seen: Seen, shown: Shown, task: str | None, found: list[Reading]) -> Picture:
    who = task or "all tasks"
    figure, axes = style.panels(
        len(shown.indices), 1 + len(found), (1.9, 1.6), f"Attention of {who}", layout="compressed"
    )
    means = [reading.values.float().mean(1) for reading in found]
    low, high = min(float(m.min()) for m in means), max(float(m.max()) for m in means)
    spare = max(LEAST_SPAN - (high - low), 0.0) / 2
    low, high = max(low - spare, 0.0), min(high + spare, 1.0)
    numbers: dict[str, Any] = {}
    for row, index in enumerate(shown.indices):
        axes[row, 0].imshow(picture_of(shown.inputs[row]), cmap="gray", vmin=0, vmax=1)
        style.row_label(axes[row, 0], f"sample {index}")
        for axis, reading, mean in zip(axes[row, 1:], found, means, strict=True):
            mask = mean[row].numpy()
            axis.imshow(mask, cmap=style.SCALAR, vmin=low, vmax=high)
            numbers.setdefault(str(index), {})[reading.place] = grid(mask)
            if row == 0:
                axis.set_title(reading.place)
    axes[0, 0].set_title("input")
    for axis in axes.flat:
        style.bare(axis)
    style.colour_bar(axes[0, -1])
    return Picture(
        f"attention-{_file_name(who)}",
        f"Attention of {who}",
        f"What the attention masks of {who} let pass of the shared features, stage by stage: bright passes,"
        " dark is held back, mean over the channels. All masks share one scale. A stage of one colour lets"
        " the same pass everywhere.",
        figure,
        {"split": seen.split, "task": task, "samples": numbers},
    )


def features(seen: Seen) -> Iterator[Picture]:
    """Yield for each pyramid that heads read a picture of its stages, for the first of the chosen samples."""
    for shown in seen.shown:
        receivers: dict[int, list[str]] = {}
        for task, pyramid in shown.pyramids.items():
            receivers.setdefault(id(pyramid), []).append(task)
        for tasks in receivers.values():
            pyramid = shown.pyramids[tasks[0]]
            if shown.inputs.dim() == 4:  # what is seen in a table has no places
                yield _features(seen, shown, tasks, pyramid)


def _features(seen: Seen, shown: Shown, tasks: Sequence[str], pyramid: Pyramid) -> Picture:
    who = "all tasks" if set(tasks) == set(shown.pyramids) and len(tasks) > 1 else ", ".join(tasks)
    index = shown.indices[0]
    figure, axes = style.panels(
        len(pyramid), 1 + CHANNELS, (1.4, 1.4), f"Features for {who}", layout="compressed"
    )
    numbers = {}
    for row, level in enumerate(pyramid):
        chosen = _liveliest(level)
        maps = level[0].float().numpy()
        style.row_label(axes[row, 0], f"stage {row + 1}\n{level.shape[2]} × {level.shape[3]}")
        if row == 0:
            axes[row, 0].imshow(picture_of(shown.inputs[0]), cmap="gray", vmin=0, vmax=1)
            axes[row, 0].set_title("input")
        else:
            axes[row, 0].imshow(np.ones((1, 1, 3)), aspect="equal")
        low, high = float(maps[chosen].min()), float(maps[chosen].max())
        for axis, channel in zip(axes[row, 1:], chosen, strict=False):
            axis.imshow(maps[channel], cmap=style.SCALAR, vmin=low, vmax=max(high, low + 1e-12))
            axis.set_title(f"channel {channel}", fontsize=8, color=style.PALE)
        for axis in axes[row, 1 + len(chosen) :]:
            axis.remove()
        numbers[f"stage{row + 1}"] = {
            "channels": level.shape[1],
            "mean": number(float(level[0].mean())),
            "zero": number(float((level[0] == 0).double().mean())),
            "maps": {str(channel): grid(maps[channel]) for channel in chosen},
        }
    for axis in axes.flat:
        style.bare(axis)
    return Picture(
        f"features-{_file_name(who)}",
        f"Features for {who}",
        f"What the head of {who} reads of sample {index}, stage by stage: of each stage the channels that"
        " vary most over the chosen samples, bright where they are strong. A stage shares one scale.",
        figure,
        {"split": seen.split, "sample": index, "tasks": list(tasks), "stages": numbers},
    )


def _liveliest(level: Tensor) -> list[int]:
    """Return the channels of ``[N, C, H, W]`` with the largest variance over samples and space."""
    order = level.double().var((0, 2, 3), correction=0).argsort(descending=True, stable=True)
    return [int(channel) for channel in order[:CHANNELS]]


def picture_of(image: Tensor) -> NDArray[Any]:
    """Return an input as drawn: ``[H, W, 3]`` of three channels, else the first channel ``[H, W]``.

    image: ``[C, H, W]``, or ``[F]`` for tables.
    """
    if image.dim() == 1:  # a row of a table: its values line by line, from black (lowest) to white
        side = math.ceil(math.sqrt(len(image)))
        low, high = image.min(), image.max()
        folded = image.new_ones(side * math.ceil(len(image) / side))
        folded[: len(image)] = (image - low) / (high - low).clamp(min=1e-12)
        image = folded.view(1, -1, side)
    pixels = image.clamp(0, 1).numpy()
    found: NDArray[Any] = pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]
    return found


def _average(reading: Reading) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return mean and standard deviation over channels, ``[T, T]`` each."""
    values = reading.values.double().numpy()
    values = values[None] if values.ndim == 2 else values
    return values.mean(0), values.std(0)


def _expert_names(reading: Reading) -> tuple[str, ...]:
    return reading.names or tuple(str(i + 1) for i in range(reading.values.shape[1]))


def _file_name(who: str) -> str:
    """Return a name of tasks as a part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in who.replace(", ", "+").replace(" ", "-"))
