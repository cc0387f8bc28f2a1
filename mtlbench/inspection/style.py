"""How every picture looks: colours that colour-blind people tell apart, quiet axes, bytes that repeat."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from textwrap import wrap
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

Format = Literal["png", "svg"]

INK, PALE, GRID = "#222222", "#767676", "#e4e4e4"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c5a2b", "#000000")
"""Lines and areas, in the order of tasks: Okabe & Ito's colours, told apart with every kind of sight."""
GOOD, BAD = PALETTE[0], PALETTE[1]
SIGNED: Colormap = LinearSegmentedColormap.from_list("signed", (BAD, "#f2a878", "#f7f7f7", "#86bbdb", GOOD))
"""From -1 (against each other) over 0 to 1 (together)."""
SCALAR: Colormap = mpl.colormaps["cividis"]
STYLES = ("-", "--", ":", "-.")

_SETTINGS: Any = {
    "svg.hashsalt": "mtlbench",
    "svg.fonttype": "path",
    "figure.dpi": 100,
    "savefig.dpi": 130,
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",  # it comes with matplotlib, so the same glyphs are everywhere
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#b0b0b0",
    "axes.labelcolor": PALE,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": PALE,
    "ytick.color": PALE,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "image.interpolation": "nearest",
}


@contextmanager
def house() -> Iterator[None]:
    """Draw in the house style inside the block, whatever the user's own settings are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


def colour(index: int) -> str:
    """Return the colour of the task, expert or class at ``index``; it repeats after `PALETTE`."""
    return PALETTE[index % len(PALETTE)]


def line_style(index: int) -> str:
    """Return a dash pattern that changes when the colours begin anew."""
    return STYLES[index // len(PALETTE) % len(STYLES)]


def panels(
    rows: int, columns: int, size: tuple[float, float], title: str = "", **options: Any
) -> tuple[Figure, NDArray[Any]]:
    """Return a figure with ``rows x columns`` axes (an object array ``[rows, columns]``).

    size: width and height of one panel in inches. options: as `Figure.subplots` takes them, and ``layout``:
    "compressed" for panels whose sides have a fixed ratio, as images have.
    """
    layout = options.pop("layout", "constrained")
    width = columns * size[0]
    title = "\n".join(line for part in title.splitlines() for line in wrap(part, int(9 * width)))
    height = rows * size[1] + (0.15 + 0.2 * len(title.splitlines()) if title else 0)
    figure = Figure(figsize=(width, height), layout=layout)
    axes: NDArray[Any] = figure.subplots(rows, columns, squeeze=False, **options)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    return figure, axes


def grid_size(count: int, most: int) -> tuple[int, int]:
    """Return (rows, columns) for ``count`` panels, ``most`` of them side by side."""
    columns = min(count, most)
    return math.ceil(count / columns), columns


def colour_bar(axis: Axes) -> None:
    """Put the scale of an axis's image to its right."""
    figure = axis.get_figure(root=True)
    assert figure is not None
    room = axis.inset_axes((1.06, 0, 0.06, 1))
    figure.colorbar(axis.images[0], cax=room)
    room.tick_params(length=2)


def bare(axis: Axes) -> None:
    """Take ticks, grid and frame away, as for a picture."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def legend_height(lines: int) -> float:
    """Return the room in inches that `legend` takes."""
    return 0.18 * (lines if lines <= 4 else -(-lines // 2))


def row_label(axis: Axes, text: str) -> None:
    """Say at the left of a row of pictures what it shows."""
    axis.set_ylabel(text, rotation=0, ha="right", va="center")


def legend(axis: Axes) -> None:
    """Name the lines below the axis and its label, where they hide nothing."""
    figure = axis.get_figure(root=True)
    assert figure is not None
    below = axis.transAxes + ScaledTranslation(0, -32 / 72, figure.dpi_scale_trans)
    columns = 1 + (len(axis.get_lines()) > 4)
    axis.legend(
        loc="upper left", bbox_to_anchor=(-0.05, 0), bbox_transform=below, borderaxespad=0, ncols=columns
    )


def heat(axis: Axes, values: NDArray[Any], texts: Sequence[Sequence[str]], limit: float = 1.0) -> None:
    """Draw a matrix from ``-limit`` to ``limit`` with a text in every cell; NaN cells are left white."""
    axis.imshow(np.ma.masked_invalid(values), cmap=SIGNED, vmin=-limit, vmax=limit)
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            strong = abs(np.nan_to_num(values[row, column])) > 0.75 * limit
            axis.text(column, row, text, ha="center", va="center", color="white" if strong else INK)
    axis.grid(False)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    # Thin white lines keep cells of equal colour apart.
    axis.set_xticks(np.arange(-0.5, values.shape[1]), minor=True)
    axis.set_yticks(np.arange(-0.5, values.shape[0]), minor=True)
    axis.grid(True, which="minor", color="white", linewidth=2)
    axis.tick_params(which="minor", length=0)


def render(figure: Figure, kind: Format) -> bytes:
    """Return the picture as a file's content: the same bytes for the same figure, without date or program."""
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()
