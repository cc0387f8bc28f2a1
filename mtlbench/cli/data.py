"""``mtlbench data``: what datasets there are, and prepare, check and look at them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mtlbench.cli.options import data_dir_option, images_option, plugin_files, samples, split_option
from mtlbench.errors import MtlbenchError

if TYPE_CHECKING:
    from mtlbench.contracts import Dataset, Task
    from mtlbench.registry import Plugin

MOST_NAMES = 4
"""Tasks that `ls` names; of more it says how many there are."""


def _source(text: str) -> Callable[[Any], Any]:
    return click.option("--source", type=click.Path(path_type=Path), metavar="DIR", help=text)


@click.group()
def data() -> None:
    """List, prepare, check and look at datasets."""


@data.command(name="ls")
@data_dir_option
@plugin_files
def ls(data_dir: Path | None, files: tuple[Path, ...]) -> None:
    """List all datasets: tasks, what is prepared, licence, and whether they are ready or what to do."""
    from rich.table import Table
    from rich.text import Text

    from mtlbench.cli.plugins import page
    from mtlbench.data.folder import data_folder
    from mtlbench.registry import Registry

    folder = data_folder(data_dir)
    table = Table.grid(padding=(0, 2, 0, 0))
    for style in ("cyan", "", "", "dim", ""):
        table.add_column(style=style, overflow="fold")
    table.add_row(*(Text(head, "bold") for head in ("dataset", "tasks", "prepared", "licence", "state")))
    for plugin in Registry(files).plugins("datasets"):
        reason = plugin.reason(load=True)
        if reason:
            table.add_row(plugin.name, "", "", "", Text(f"cannot load: {reason}", "red"))
            continue
        cls = plugin.load()
        try:
            prepared, state = _prepared(cls, folder), Text(_state(plugin, cls, folder))
        except MtlbenchError as error:
            prepared, state = [], Text(f"broken: {error}", "red")
        table.add_row(plugin.name, _names(_tasks(cls)), "; ".join(prepared), cls.licence, state)
    with page(width=10_000) as console:
        console.print(table)


@data.command()
@click.argument("name")
@data_dir_option
@plugin_files
def info(name: str, data_dir: Path | None, files: tuple[Path, ...]) -> None:
    """Show what the dataset NAME is, whose it is, how to get it, and its tasks and splits.

    NAME is a dataset or a spec such as 'table[path=cars.csv,targets=[price]]'.
    """
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from mtlbench.cli.plugins import docstring, page
    from mtlbench.data.folder import data_folder
    from mtlbench.registry import Registry
    from mtlbench.spec import Spec, parameters

    registry, folder = Registry(files), data_folder(data_dir)
    spec = Spec.parse(name)
    plugin = registry.get("datasets", spec.name)
    cls = plugin.load()
    known = parameters(cls, cls.context, plugin.title)
    missing = [parameter.name for parameter in known if parameter.required]
    dataset: Dataset | None = None
    if "[" in name or not (missing or _prepares(cls)):
        dataset = registry.choose("datasets", name).build(data_dir=folder)
    rows = [
        ("licence", cls.licence),
        ("citation", cls.citation),
        ("homepage", cls.homepage),
        ("download", cls.download),
        ("state", _state(plugin, cls, folder)),
        *(("prepared", line) for line in _prepared(cls, folder)),
    ]
    if dataset is not None:
        rows.append(("splits", _counts(dataset.counts())))
    facts, tasks = Table.grid(padding=(0, 2, 0, 0)), Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True, style="cyan")
    tasks.add_column(no_wrap=True, style="cyan")
    for key, value in rows:
        if value:
            facts.add_row(key, Text(value))
    for task in _tasks(cls) if dataset is None else dataset.tasks:
        tasks.add_row(task.name, *map(Text, _described(task)))
    with page(width=100) as console:
        console.print(Text.assemble((plugin.name, "bold cyan"), "  ", ("dataset", "dim")))
        console.print()
        for block in docstring(inspect.cleandoc(cls.__doc__ or ""), [p.name for p in known]):
            console.print(Padding(block, (0, 0, 0, 2)))
        for heading, table in (("About", facts), ("Tasks", tasks)):
            if table.row_count:
                console.print()
                console.print(heading, style="bold")
                console.print(Padding(table, (0, 0, 0, 2)))


@data.command()
@click.argument("name")
@_source("A folder that holds the published data. Without it, the data is downloaded.")
@click.option("--size", type=int, metavar="N", help="Side of the square images, in pixels.")
@data_dir_option
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


@data.command()
@click.argument("name")
@_source("Check the published files in this folder instead of what is prepared.")
@data_dir_option
@plugin_files
def verify(name: str, source: Path | None, data_dir: Path | None, files: tuple[Path, ...]) -> None:
    """Read all of the dataset NAME, and print its fingerprint, its samples and what is odd.

    NAME is a dataset or a spec such as 'pets[size=64]'. Where something is wrong, one line says what, and
    the exit code is 2.
    """
    from mtlbench.data.folder import data_folder
    from mtlbench.data.verify import verify as read_all
    from mtlbench.registry import Registry

    choice = Registry(files).choose("datasets", name)
    if source is not None:
        count = choice.cls.check_source(source, lambda line: click.echo(f"  {line}"))
        click.echo(f"{source}: all {count} samples can be read")
        return
    dataset = choice.build(data_dir=data_folder(data_dir))
    fingerprint, oddities = read_all(dataset)
    click.echo(f"{dataset.title}: fingerprint {fingerprint}, {_counts(dataset.counts())}")
    for line in oddities:
        click.echo(f"odd: {line}")


@data.command()
@click.argument("name")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", required=True,
    help="Where to put the picture; .png or .svg.",
)  # fmt: skip
@split_option("train")
@images_option("eight, evenly spaced")
@click.option(
    "--augment", metavar="LIST",
    help="Show them as the first epoch of a run with this --augment does; of the train split only.",
)  # fmt: skip
@data_dir_option
@plugin_files
def preview(
    name: str,
    output: Path,
    split: Literal["train", "val", "test"],
    images: str | None,
    augment: str | None,
    data_dir: Path | None,
    files: tuple[Path, ...],
) -> None:
    """Draw a contact sheet of the dataset NAME: inputs with all their targets.

    NAME is a dataset or a spec such as 'pets[size=64]'.
    """
    kinds: dict[str, Literal["png", "svg"]] = {".png": "png", ".svg": "svg"}
    if output.suffix not in kinds:
        raise MtlbenchError(f"-o {output}: the name of a picture ends with .png or .svg")
    if augment is not None and split != "train":
        raise MtlbenchError(f"--augment changes training samples only, and --split is {split}")
    from mtlbench.atomic import replacing, translated
    from mtlbench.data.augment import Augment, choose
    from mtlbench.data.folder import data_folder
    from mtlbench.inspection import style
    from mtlbench.inspection.targets import contact_sheet
    from mtlbench.registry import Registry
    from mtlbench.spec import split as parts_of

    chosen = samples(images, MOST_IMAGES)
    named = choose(parts_of(augment)) if augment else []
    dataset = Registry(files).choose("datasets", name).build(data_dir=data_folder(data_dir))
    change = Augment(named, dataset.tasks, dataset.title, dataset.input_shape) if named else None
    with style.house():
        sheet = contact_sheet(dataset, split, chosen, IMAGES, change)
        content = style.render(sheet, kinds[output.suffix])
    with translated(f"cannot write {output}"):
        output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(output) as descriptor, open(descriptor, "wb", closefd=False) as file:
            file.write(content)
    click.echo(output)


IMAGES, MOST_IMAGES = 8, 64


# ---- words ------------------------------------------------------------------------------------------------


def _tasks(cls: type[Dataset]) -> tuple[Task, ...]:
    """Return the tasks as far as they are known without any data."""
    return getattr(cls, "tasks", ())


def _names(tasks: tuple[Task, ...]) -> str:
    return ", ".join(task.name for task in tasks) if len(tasks) <= MOST_NAMES else f"{len(tasks)} tasks"


def _described(task: Task) -> tuple[str, str]:
    """Return a task's output and loss, and its metrics with their directions."""
    from mtlbench.contracts import Vector

    output = task.output
    shape = f"vector of {output.size}" if isinstance(output, Vector) else f"map of {output.channels}"
    arrows = {True: "higher is better", False: "lower is better"}
    groups = {
        better: ", ".join(
            metric.name + ("" if metric.unit == "1" else f" [{metric.unit}]")
            for metric in task.metrics
            if metric.higher_is_better is better
        )
        for better in (True, False)
    }
    metrics = "; ".join(f"{names} ({arrows[better]})" for better, names in groups.items() if names)
    return f"{shape}, {type(task.loss).__name__}", metrics


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _prepared(cls: type[Dataset], folder: Path) -> list[str]:
    """Return what is prepared, a line a file."""
    return [
        f"{path.name} ({path.stat().st_size / 1e6:.1f} MB): {_counts(counts)}"
        for path, counts in cls.prepared(folder).items()
    ]


def _prepares(cls: Any) -> bool:
    """Return whether a dataset has something to prepare."""
    from mtlbench.contracts import Dataset

    made: bool = cls.prepare.__func__ is not vars(Dataset)["prepare"].__func__
    return made


def _state(plugin: Plugin, cls: type[Dataset], folder: Path) -> str:
    """Return whether a dataset can be used as it is, or what to do."""
    from mtlbench.spec import parameters

    missing = [p.name for p in parameters(cls, cls.context, plugin.title) if p.required]
    if missing:
        return f"say {' and '.join(missing)}: {plugin.name}[{','.join(f'{name}=…' for name in missing)}]"
    if cls.prepared(folder) or not _prepares(cls):
        return "ready"
    if cls.without:
        return f"ready: {cls.without}"
    return f"to prepare: mtlbench data prepare {plugin.name} --source DIR"
