"""``mtlbench data``: prepare datasets."""

from __future__ import annotations

from pathlib import Path

import click

from mtlbench.cli.options import plugin_files


@click.group()
def data() -> None:
    """Prepare datasets."""


@data.command()
@click.argument("name")
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A folder that holds the published data. Without it, the data is downloaded.",
)
@click.option("--size", type=int, metavar="N", help="Side of the square images, in pixels.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where prepared data lives. Default: $MTLBENCH_DATA, else the user's cache folder.",
)
@plugin_files
def prepare(
    name: str, source: Path | None, size: int | None, data_dir: Path | None, files: tuple[Path, ...]
) -> None:
    """Convert the dataset NAME into the one file that runs read.

    An earlier file of the same size is replaced, but only once the new one is complete.
    """
    from rich.console import Console

    from mtlbench.data.folder import data_folder
    from mtlbench.registry import Registry

    console = Console(soft_wrap=True, highlight=False)
    dataset = Registry(files).get("datasets", name).load()
    console.print(f"[bold]{name}[/bold]")

    def report(line: str) -> None:
        console.print(f"  {line}", markup=False)

    path = dataset.prepare(data_folder(data_dir), source, size, report)
    report(f"ready: {path} ({path.stat().st_size / 1e6:.1f} MB)")
