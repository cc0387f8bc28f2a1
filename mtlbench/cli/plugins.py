"""``mtlbench ls`` and ``mtlbench info``: what there is to choose from."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtlbench.cli.options import plugin_files

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mtlbench.registry import Kind, Plugin
    from mtlbench.spec import Parameter

_NEEDS = {
    "losses": "the losses: a step costs one forward and one backward pass, as with equal weighting",
    "gram": "the Gram matrix of the task gradients: a step costs one backward pass of the shared part for "
    "each task; with --grad features about as much as equal weighting",
    "cross": "the products of task gradients of two batches: a step draws three batches, so an epoch has a "
    "third of the steps, and costs two backward passes of the shared part for each task and one more",
    "bilevel": "what a step on one batch does to another: a step draws two batches, so an epoch has half of "
    "the steps, and costs two backward passes for each task or more",
    "jacobian": "the task gradients: a step costs one backward pass of the shared part for each task, and "
    "the memory of one gradient for each",
}
_HEADS = {
    "weighted": "the gradient of their own task times its weight",
    "unweighted": "the gradient of their own task as it is",
    "own": "the gradient of their own task times a weight of their own",
}


@dataclass(frozen=True)
class _Row:
    """A plugin as `ls` shows it.

    text: its summary, or what is wrong with it. broken: whether it cannot load. twice: whether its name is
    given by another plugin of the kind too.
    """

    plugin: Plugin
    text: str
    broken: bool
    twice: bool


@click.command()
@click.argument("kind", required=False)
@click.argument("pattern", default="*")
@plugin_files
@click.option("--markdown", is_flag=True, help="Print Markdown tables.")
@click.option("--check", is_flag=True, help="Import every plugin to be sure; exit code 1 if one fails.")
@click.pass_context
def ls(
    ctx: click.Context, kind: str | None, pattern: str, files: tuple[Path, ...], markdown: bool, check: bool
) -> None:
    """List plugins with a line on each; what cannot load is listed with its reason.

    KIND is architectures, encoders, weightings, datasets or auxiliary; all of them by default. PATTERN is a
    shell pattern for names, such as 'res*'.
    """
    from mtlbench.registry import KINDS, Registry, find_kind

    kinds = [find_kind(kind)] if kind else list(KINDS.values())
    registry = Registry(files)
    listed = {chosen: _rows(registry.plugins(chosen.plural, pattern), check) for chosen in kinds}
    if pattern != "*":
        listed = {chosen: rows for chosen, rows in listed.items() if rows}
    if not listed:
        what = kinds[0].singular if kind else "plugin"
        click.echo(f"no {what} has a name like {pattern!r}", err=True)
    elif markdown:
        click.echo("\n\n".join(_markdown(chosen, rows) for chosen, rows in listed.items()))
    else:
        _print_tables(listed)
    for file in registry.broken_files:
        click.echo(f"{file.path} gave no plugin: {file.reason}", err=True)
    if check and (registry.broken_files or any(row.broken for rows in listed.values() for row in rows)):
        ctx.exit(1)


@click.command()
@click.argument("kind")
@click.argument("name")
@plugin_files
def info(kind: str, name: str, files: tuple[Path, ...]) -> None:
    """Show what a plugin is, its parameters, what it costs and where it is written.

    KIND is architecture, encoder, weighting, dataset or auxiliary.
    """
    from rich.padding import Padding
    from rich.text import Text

    from mtlbench.registry import KINDS, Registry
    from mtlbench.spec import describe, parameters

    plugin = Registry(files).get(kind, name)
    cls = plugin.load()
    known = parameters(cls, cls.context, plugin.title)
    names = [parameter.name for parameter in known]
    sections = {
        "Parameters": _table(
            (parameter.name, describe(parameter.annotation), _default(parameter)) for parameter in known
        ),
        "Cost": _table(_cost(plugin.kind, cls)),
        "Source": _table(_source(plugin, cls)),
    }
    with page(width=100) as console:
        console.print(Text.assemble((plugin.name, "bold cyan"), "  ", (KINDS[plugin.kind].singular, "dim")))
        console.print()
        for block in docstring(inspect.cleandoc(cls.__doc__ or "It has no docstring."), names):
            console.print(Padding(block, (0, 0, 0, 2)))
        for heading, table in sections.items():
            if table.row_count:
                console.print()
                console.print(heading, style="bold")
                console.print(Padding(table, (0, 0, 0, 2)))


@contextmanager
def page(width: int) -> Iterator[Console]:
    """Print what is written to the console: as wide as the terminal, elsewhere ``width`` columns at most."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = width
    with console.capture() as captured:
        yield console
    # Rich fills lines with blanks; whoever pipes or copies the text is spared them.
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()), color=True)


def _rows(plugins: Sequence[Plugin], check: bool) -> list[_Row]:
    names = [plugin.name for plugin in plugins]
    rows = []
    for plugin in plugins:
        reason = plugin.reason(load=check)
        twice = names.count(plugin.name) > 1
        if reason:
            text = f"cannot load: {reason}"
        elif twice:
            text = f"name given twice: {plugin.summary()}"
        else:
            text = plugin.summary()
        rows.append(_Row(plugin, text, reason is not None, twice))
    return rows


def _print_tables(listed: Mapping[Kind, Sequence[_Row]]) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    widest = max((len(row.plugin.name) for rows in listed.values() for row in rows), default=0)
    with page(width=10_000) as console:
        for number, (kind, rows) in enumerate(listed.items()):
            if number:
                console.print()
            console.print(Text.assemble((kind.plural, "bold"), "  ", (str(len(rows)), "dim")))
            table = Table.grid(padding=(0, 2, 0, 0))
            table.add_column(no_wrap=True, min_width=widest)
            table.add_column(overflow="fold")
            table.add_column(no_wrap=True, style="dim")
            for row in rows:
                style = "red" if row.broken else "yellow" if row.twice else "cyan"
                text = Text(row.text, "red" if row.broken else "")
                table.add_row(Text(row.plugin.name, style), text, row.plugin.origin)
            if rows:
                console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _markdown(kind: Kind, rows: Sequence[_Row]) -> str:
    def cells(*texts: str) -> str:
        return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"

    lines = [f"## {kind.plural.capitalize()}", "", cells("name", "summary", "from"), "|---|---|---|"]
    return "\n".join([*lines, *(cells(f"`{row.plugin.name}`", row.text, row.plugin.origin) for row in rows)])


def docstring(text: str, names: Sequence[str]) -> Iterator[Text]:
    """Yield the blocks of a docstring, to be wrapped to any width.

    Lines of a paragraph are joined; a line that is indented (a formula), a list's item, and a line that
    starts with a parameter's name or a word such as ``Source`` and a colon are blocks of their own.
    """
    key = rf"(?:[A-Z]\w+|{'|'.join(map(re.escape, names)) or '[A-Z]'})"
    heading = re.compile(rf"{key}(?:, {key})*:(?= )")
    blocks: list[str] = []
    for line in text.splitlines():
        last = blocks[-1] if blocks else ""
        starts = not line or not last or line.lstrip().startswith("- ") or heading.match(line)
        indented = line.startswith(" ") or last.startswith(" ")
        if starts or (indented and not last.startswith("- ")):
            blocks.append(line)
        else:
            blocks[-1] += f" {line.lstrip()}"
    for block in blocks:
        styled = _code(block)
        if found := heading.match(styled.plain):
            styled.stylize("bold", 0, found.end())
        yield styled


def _code(text: str) -> Text:
    """Return ``text`` with what stands between backticks set in colour, without the backticks."""
    from rich.text import Text

    styled = Text()
    for index, part in enumerate(re.split("``?", text)):
        styled.append(part, "cyan" if index % 2 else "")
    return styled


def _table(rows: Iterable[tuple[str, ...]]) -> Table:
    """Return rows whose first column names what the others say."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="cyan")
    for row in rows:
        table.add_row(row[0], *map(_code, row[1:]))
    return table


def _default(parameter: Parameter) -> str:
    from mtlbench.spec import format_value

    if parameter.required:
        return "required"
    if isinstance(parameter.default, str):
        return f'default "{parameter.default}"'
    try:
        return f"default {format_value(parameter.default)}"
    except TypeError:
        return f"default {parameter.default!r}"


def _cost(kind: str, cls: type[Any]) -> Iterator[tuple[str, str]]:
    if kind == "weightings":
        yield "needs", _NEEDS[cls.needs.value]
        if "after_step" in vars(cls):
            yield "after", "a hook runs after each step; to see the batch again costs one more forward pass"
        if cls.needs.value != "losses":
            yield "--grad", " or ".join(sorted(cls.spaces, reverse=True))
        yield "heads", f"receive {_HEADS[cls.heads]}"
        if cls.properties:
            yield "promises", ", ".join(sorted(cls.properties))
    elif kind == "architectures":
        if cls.cost:
            yield "cost", cls.cost
        yield "--grad", "parameters or features" if cls.shares_features else "parameters"


def _source(plugin: Plugin, cls: type[Any]) -> Iterator[tuple[str, str]]:
    yield "from", plugin.origin
    yield "class", f"{plugin.module}:{plugin.attribute}"
    file = inspect.getsourcefile(cls)
    if file:
        yield "file", f"{_shown(Path(file))}:{inspect.getsourcelines(cls)[1]}"


def _shown(path: Path) -> Path:
    """Return a path as short as it can be written here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
