"""Options that several commands take, and how their values are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mtlbench.errors import MtlbenchError

Command = TypeVar("Command", bound=Callable[..., Any])

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


def split_option(default: str) -> Callable[[Command], Command]:
    """Return ``--split``."""
    splits = click.Choice(["train", "val", "test"])
    return click.option("--split", type=splits, default=default, show_default=True, help="Split to look at.")


def images_option(default: str) -> Callable[[Command], Command]:
    """Return ``--images``, whose value `samples` reads; ``default`` says in words which are shown without."""
    text = f"Samples to show, numbered from 0, such as 0,3,8-10.  [default: {default}]"
    return click.option("--images", metavar="LIST", help=text)


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
