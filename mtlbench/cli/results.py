"""``mtlbench results``: look after a folder of records."""

from __future__ import annotations

from pathlib import Path

import click

STORE = click.argument("store", type=click.Path(path_type=Path), default=Path("results"))


@click.group()
def results() -> None:
    """Verify, merge and tidy folders of records."""


@results.command()
@STORE
@click.option(
    "--board",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A leaderboard.json whose Δ-MTL must follow from the records.",
)
def verify(store: Path, board: Path | None) -> None:
    """Recompute what can be recomputed of every record in STORE; exit 1 where something does not hold."""
    from mtlbench.results import Store
    from mtlbench.results.verify import verify as check

    found = Store(_folder(store))
    faults = [f"{path}: {fault}" for path, fault in check(found)]
    if board is not None and not faults:
        faults = _board_faults(found, board)
    for fault in faults:
        click.echo(fault, err=True)
    count = len(found.paths())
    if faults:
        click.echo(f"{count} records, {len(faults)} faults", err=True)
        raise SystemExit(1)
    click.echo(f"{count} records, no fault found")


@results.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder that takes all.",
)
def merge(sources: tuple[Path, ...], output: Path) -> None:
    """Copy the records of all SOURCES into one folder; what is there already stays."""
    from mtlbench.results import Store

    target = Store(output)
    target.check()
    added = known = 0
    differing: list[str] = []
    for source in sources:
        store = Store(_folder(source))
        for record in store.records():
            kept = target.merge(record, store.cost(record))
            if kept is None:
                added += 1
            elif kept.dumps() == record.dumps():
                known += 1
            else:
                differing.append(f"{source}: {record.run_id}")
                continue
            if (model := store.model(record)).is_file():
                target.add_model(record, model.read_bytes())
            if (profile := store.profile(record)).is_file():
                target.add_profile(record, profile.read_text(encoding="utf-8"))
    click.echo(f"{output}: {added} records added, {known} were there already")
    if differing:
        click.echo(
            f"{len(differing)} records differ from those of the same name that are there, which were kept:"
            f" {', '.join(differing[:5])}",
            err=True,
        )
        raise SystemExit(1)


@results.command()
@STORE
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def prune(store: Path, dry_run: bool) -> None:
    """Remove what killed processes left in STORE: temporary files, and checkpoints of finished runs."""
    from mtlbench.atomic import remove_abandoned
    from mtlbench.results import Store
    from mtlbench.results.verify import leftovers

    found = leftovers(Store(_folder(store)))
    gone = found if dry_run else [path for path in found if remove_abandoned(path)]
    for path in gone:
        click.echo(path)
    click.echo(f"{len(gone)} files {'would be ' if dry_run else ''}removed")


def _folder(store: Path) -> Path:
    from mtlbench.errors import MtlbenchError

    if not store.is_dir():
        raise MtlbenchError(f"results folder '{store}' does not exist")
    return store


def _board_faults(store: object, path: Path) -> list[str]:
    """Compare Δ-MTL as it follows from the records with what a built leaderboard says."""
    import json

    from mtlbench.errors import MtlbenchError
    from mtlbench.leaderboard.board import build
    from mtlbench.leaderboard.formats import board_json
    from mtlbench.results import Store

    assert isinstance(store, Store)
    try:
        claimed = json.loads(path.read_text(encoding="utf-8"))
        tables = {table["name"]: {r["label"]: r for r in table["rows"]} for table in claimed["tables"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MtlbenchError(f"'{path}' is no leaderboard.json: {error}") from None
    faults = []
    for table in json.loads(board_json(build(store)))["tables"]:
        for row in table["rows"]:
            said = tables.get(table["name"], {}).get(row["label"])
            if said is None:
                faults.append(f"{path}: lacks {row['label']} in {table['name']}")
            elif said["delta_mtl_by_seed"] != row["delta_mtl_by_seed"]:
                faults.append(
                    f"{path}: {row['label']} in {table['name']} has Δ-MTL {said['delta_mtl_by_seed']},"
                    f" its records give {row['delta_mtl_by_seed']}"
                )
    return faults
