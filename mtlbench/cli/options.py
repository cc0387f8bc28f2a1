"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path

import click

plugin_files = click.option(
    "--plugin",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A Python file that defines plugins. May be repeated.",
)
