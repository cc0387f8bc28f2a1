"""``mtlbench leaderboard`` and ``mtlbench compare``: tables of many runs."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

from mtlbench.cli.options import data_dir_option, plugin_files

STORE = click.argument("store", type=click.Path(path_type=Path), default=Path("results"))
REFERENCE = click.option(
    "--reference", metavar="ROW", help="The row that others are tested against.  [default: hps+ew]"
)
PUBLISHED = click.option(
    "--published",
    is_flag=True,
    help="Add published figures to tables of their dataset: marked, in no statistic.",
)
FILES = ("index.html", "leaderboard.md", "leaderboard.csv", "leaderboard.json")


@click.group()
def leaderboard() -> None:
    """Make tables of all runs in a results folder."""


@leaderboard.command()
@STORE
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="DIR", required=True, help="Where to write."
)
@click.option("--check", is_flag=True, help="Write nothing; exit 1 where what is there is stale.")
@REFERENCE
@PUBLISHED
def build(store: Path, output: Path, check: bool, reference: str | None, published: bool) -> None:
    """Write the leaderboard of STORE as one HTML page, Markdown, CSV and JSON.

    The same records give the same bytes.
    """
    from mtlbench.atomic import replacing, translated
    from mtlbench.leaderboard.formats import board_json, markdown, table_csv
    from mtlbench.leaderboard.page import page

    board = _board(store, reference, published)
    texts = (page(board), markdown(board), table_csv(board), board_json(board))
    stale = []
    for name, text in zip(FILES, texts, strict=True):
        path, content = output / name, text.encode()
        if path.is_file() and path.read_bytes() == content:
            continue
        stale.append(name)
        if not check:
            with (
                translated(f"can't write '{path}'", "choose another folder with -o"),
                replacing(path) as descriptor,
                os.fdopen(os.dup(descriptor), "wb") as file,
            ):
                file.write(content)
    if check and stale:
        click.echo(
            f"stale: {', '.join(stale)} in '{output}'; make them anew with"
            f" 'mtlbench leaderboard build {store} -o {output}'",
            err=True,
        )
        raise SystemExit(1)
    rows = sum(len(table.rows) for table in board.tables)
    state = "up to date" if not stale else "written"
    tables = f"{len(board.tables)} table{'s' if len(board.tables) != 1 else ''}"
    click.echo(f"{output / FILES[0]}: {tables}, {rows} rows from {board.records} records, {state}")


@leaderboard.command()
@STORE
@REFERENCE
@PUBLISHED
def show(store: Path, reference: str | None, published: bool) -> None:
    """Print the leaderboard of STORE."""
    from mtlbench.leaderboard.terminal import show as render

    _print(render(_board(store, reference, published)))


@leaderboard.command()
@STORE
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    required=True,
    help="The built leaderboard.",
)
@click.option("--base", metavar="REV", help="Git revision whose records must all be there still, unchanged.")
@click.option("--rerun/--no-rerun", default=True, help="Train one small record again and compare.")
@click.option(
    "--limit", type=float, default=60.0, help="Seconds that this record may have cost.  [default: 60]"
)
@click.option("--pick", type=int, default=0, help="Which record: a seed for the choice.  [default: 0]")
@data_dir_option
@REFERENCE
@PUBLISHED
@plugin_files
@click.pass_context
def ci(
    context: click.Context,
    store: Path,
    output: Path,
    base: str | None,
    rerun: bool,
    limit: float,
    pick: int,
    data_dir: Path | None,
    reference: str | None,
    published: bool,
    files: tuple[Path, ...],
) -> None:
    """Check a repository of records, as its CI does; exit 1 where something does not hold.

    Every record is verified, none that was there at --base may be changed or gone, the leaderboard must be
    what the records give, and one small record is trained again.
    """
    from mtlbench.cli.progress import Quiet
    from mtlbench.cli.results import verify
    from mtlbench.cli.run import prepare_environment
    from mtlbench.results import Store

    prepare_environment()
    from mtlbench.leaderboard import ci as checks

    if base is not None:
        changed = checks.modified(store, base)
        if changed:
            click.echo(f"records are only ever added, but since {base}: {', '.join(changed[:5])}", err=True)
            raise SystemExit(1)
        click.echo(f"no record was changed since {base}")
    context.invoke(verify, store=store, board=None)
    context.invoke(build, store=store, output=output, check=True, reference=reference, published=published)
    if not rerun:
        return
    elsewhere: dict[str, str] = {}
    for record in checks.picks(Store(store), limit, pick):
        data, _ = record.folder
        if data in elsewhere:
            continue
        try:
            outcome, off = checks.rerun(record, data_dir, files, Quiet())
        except checks.Elsewhere as error:
            elsewhere[data] = str(error)
            click.echo(f"no record of {data} can be trained again here: {error}")
            continue
        click.echo(f"{'/'.join(record.folder)}/{record.run_id} trained again: {outcome}", err=bool(off))
        for line in off:
            click.echo(f"  {line}", err=True)
        if off:
            raise SystemExit(1)
        return
    if not elsewhere:
        click.echo(f"no record cost at most {limit:g} s, so none was trained again")


@click.command()
@click.argument("a")
@click.argument("b")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("results"),
    metavar="DIR",
    help="Folder of the records.  [default: results]",
)
def compare(a: str, b: str, results: Path) -> None:
    """Set the rows A and B side by side, metric by metric, with paired tests over their common seeds.

    A and B are rows as the leaderboard names them, such as hps+ew and mmoe+rlw.
    """
    from mtlbench.leaderboard.terminal import side_by_side

    _print(side_by_side(_board(results, None), a, b))


def _board(store: Path, reference: str | None, published: bool = False) -> Any:
    from mtlbench.errors import MtlbenchError
    from mtlbench.leaderboard.board import build as make
    from mtlbench.leaderboard.published import rows
    from mtlbench.results import Store
    from mtlbench.results.verify import verify

    if not store.is_dir():
        raise MtlbenchError(f"results folder '{store}' does not exist; 'mtlbench run' makes one")
    try:
        return make(Store(store), reference, rows() if published else ())
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        fault = next(verify(Store(store)), None)
        if fault is None:
            raise
        raise MtlbenchError(f"'{fault[0]}': {fault[1]}; move it away") from error


def print_board(results: Path, keys: Collection[str]) -> None:
    """Print the tables of a results folder that have one of these comparability keys."""
    from dataclasses import replace

    from mtlbench.leaderboard.terminal import show as render

    board = _board(results, None)
    _print(render(replace(board, tables=tuple(table for table in board.tables if table.key in keys))))


def _print(what: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 250
    with console.capture() as captured:
        console.print(what)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
