"""Options that several commands take, and how their values are read."""

from __future__ import annotations

from pathlib import Path

import click

from mtlbench.errors import MtlbenchError

plugin_files = click.option(
    "--plugin",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A Python file that defines plugins. May be repeated.",
)

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of prepared data. Default: $MTLBENCH_DATA, else the user's cache folder.",
)


def samples(text: str | None, most: int) -> tuple[int, ...] | None:
    """Read ``--images``: up to ``most`` different numbers such as ``0,3,8-10``; None for none."""
    if text is None:
        return None
    from mtlbench.config import parse_seeds

    try:
        found = parse_seeds(text)
    except ValueError:
        found = ()
    if not found or len(set(found)) < len(found) or len(found) > most:
        raise MtlbenchError(
            f"--images: up to {most} different numbers such as 0,3,8-10 are needed, found '{text}'"
        )
    return found
