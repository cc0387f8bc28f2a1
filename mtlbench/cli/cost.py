"""``mtlbench cost``: what architectures cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlbench.cli.options import plugin_files

if TYPE_CHECKING:
    from mtlbench.inspection.cost import ArchitectureCost


@click.command()
@click.argument("architectures", nargs=-1)
@click.option("--encoder", default="unet", show_default=True, metavar="SPEC", help="Encoder of them all.")
@click.option("--tasks", type=click.IntRange(1), default=3, show_default=True, help="Number of tasks.")
@click.option("--size", type=click.IntRange(1), default=64, show_default=True, help="Side of the images.")
@click.option(
    "--batch-size", type=click.IntRange(2), default=16, show_default=True, help="Images in a timed step."
)
@click.option(
    "--rounds", type=click.IntRange(0), default=10, show_default=True, help="Steps to time; 0: none."
)
@click.option("--markdown", is_flag=True, help="Print a Markdown table.")
@plugin_files
def cost(
    architectures: tuple[str, ...],
    encoder: str,
    tasks: int,
    size: int,
    batch_size: int,
    rounds: int,
    markdown: bool,
    files: tuple[Path, ...],
) -> None:
    """Count parameters and operations of ARCHITECTURES (specs; all by default) and time a step, beside hps.

    Parameters and MFLOPs (of one forward pass on one image, a multiplication and an addition being two) are
    those of the architecture, then with heads. The step is one of equal weighting, heads and optimiser
    included.
    """
    from mtlbench.inspection.cost import architecture_costs
    from mtlbench.registry import Registry
    from mtlbench.training.memory import keep_freed_memory

    keep_freed_memory()  # as in a run
    registry = Registry(files)
    names = architectures or tuple(plugin.name for plugin in registry.plugins("architectures"))
    rows = architecture_costs(registry, names, encoder, tasks, size, batch_size, rounds)
    head = ["architecture", "parameters", "× hps", "MFLOPs", "× hps", "with heads", "× hps"]
    head += ["ms/step", "× hps"] if rounds else []
    lines = list(_lines(rows))
    if markdown:
        click.echo("\n".join(["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]))
        for line in lines:
            click.echo("| `" + "` | ".join([line[0], " | ".join(line[1:])]) + " |")
    else:
        _print(head, lines)
    for row in rows:
        if row.refused:
            click.echo(f"{row.name}: {row.refused}", err=True)


def _lines(rows: Sequence[ArchitectureCost]) -> Iterator[tuple[str, ...]]:
    first = rows[0]
    for row in rows:
        if row.refused:
            continue
        found = [row.name, f"{row.parameters:,}", f"{row.parameters / first.parameters:.2f}"]
        found += [f"{row.flops / 1e6:,.1f}", f"{row.flops / first.flops:.2f}"]
        found += [
            f"{row.flops_with_heads / 1e6:,.1f}",
            f"{row.flops_with_heads / first.flops_with_heads:.2f}",
        ]
        if row.ms is not None:
            found += [f"{row.ms:.1f}", f"{row.relative:.2f}"]
        yield tuple(found)


def _print(head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for index, title in enumerate(head):
        table.add_column(title, justify="right" if index else "left")
    for line in lines:
        table.add_row(*line)
    Console(highlight=False, markup=False).print(table)
