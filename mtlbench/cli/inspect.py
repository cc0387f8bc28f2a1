"""``mtlbench inspect``: what a run learned, as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from mtlbench.cli.options import data_dir_option, images_option, plugin_files, samples, split_option


@click.command()
@click.argument("run")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="DIR",
    help="Folder for the pictures.  [default: inspect/RUN]",
)  # fmt: skip
@click.option(
    "--format", "kind", type=click.Choice(["png", "svg"]), default="png", show_default=True,
    help="Format of the pictures.",
)  # fmt: skip
@split_option("test")
@images_option("four, evenly spaced")
@click.option(
    "--results", type=click.Path(path_type=Path), default=Path("results"), metavar="DIR", show_default=True,
    help="Folder of the records.",
)  # fmt: skip
@data_dir_option
@plugin_files
def inspect(
    run: str,
    output: Path | None,
    kind: Literal["png", "svg"],
    split: Literal["train", "val", "test"],
    images: str | None,
    results: Path,
    data_dir: Path | None,
    files: tuple[Path, ...],
) -> None:
    """Draw what a run learned: who pulls against whom, gates, attention, features, predictions, losses.

    RUN is a run id, the beginning of one, or the path of a record. Every picture comes with its numbers as
    JSON; index.html shows them all.
    """
    chosen = samples(images, MOST)
    from mtlbench.inspection.subject import comparison, find_record, missing_model, rebuild, seeds
    from mtlbench.registry import Registry
    from mtlbench.results import Store

    record, root = find_record(run, results)
    store = Store(root)
    why = missing_model(record, store)
    subject = None if why else rebuild(record, store, Registry(files), data_dir)
    for notice in [f"{why}; here is what the record tells"] if why else subject.notices if subject else ():
        click.echo(notice, err=True)
    from mtlbench.inspection.page import write

    attempt = record.values["attempt"]
    folder = output or Path("inspect") / (record.run_id if attempt == 1 else f"{record.run_id}.{attempt}")
    pairs = seeds(record, store)
    written = write(folder, kind, record, comparison(record, store), pairs, subject, split, chosen)
    for path in written:
        if path.suffix != ".json":
            click.echo(path)


MOST = 16
