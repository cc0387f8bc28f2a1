"""A board in the terminal: the same figures as on the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from mtlbench.errors import MtlbenchError, did_you_mean
from mtlbench.leaderboard import formats
from mtlbench.leaderboard.board import Board, Row, Table
from mtlbench.results import Summary, summarise
from mtlbench.results.statistics import versus


def show(board: Board) -> RenderableType:
    """Return all tables of a board for a rich console."""
    if not board.tables:
        return Text("There are no records yet; 'mtlbench run' makes them.")
    parts: list[RenderableType] = []
    for table in board.tables:
        parts += ["", _title(table), "", _table(table), *_notes(table)]
    if board.ranking is not None:
        parts += [
            "",
            Text("Over all datasets", style="bold"),
            Text(formats.ranks_said(board.ranking), style="dim"),
            "",
        ]
        grid = _grid()
        grid.add_column("method")
        grid.add_column("mean rank", justify="right")
        for method, rank in zip(board.ranking.methods, board.ranking.ranks, strict=True):
            grid.add_row(method, f"{rank:.2f}")
        parts.append(grid)
    return Padding(Group(*parts), (0, 0, 0, 1), expand=False)


def _title(table: Table) -> Text:
    title = Text(f"{table.title}: {', '.join(table.tasks)}", style="bold")
    title.append(f"\n{formats.takeaway(table)}", style="not bold")
    return title.append(f"\n{formats.facts(table)} · key {table.key}", style="not bold dim")


GAP = 3
"""Blanks between two columns."""


def _grid() -> Grid:
    return Grid(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")


@dataclass(frozen=True)
class _Columns:
    """A table that wraps by columns: what has no room beside the first comes below, with the first again."""

    columns: Sequence[tuple[str, Sequence[Text]]]
    left: frozenset[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        first, *others = self.columns
        room = options.max_width - self._width(first)
        blocks: list[list[tuple[str, Sequence[Text]]]] = [[]]
        used = 0
        for column in others:
            width = GAP + self._width(column)
            if used + width > room and blocks[-1]:
                blocks.append([])
                used = 0
            blocks[-1].append(column)
            used += width
        for number, block in enumerate(blocks):
            if number:
                yield Text()
            grid = _grid()
            for name, _ in (first, *block):
                grid.add_column(Text(name), justify="left" if name in self.left else "right", no_wrap=True)
            for cells in zip(*(cells for _, cells in (first, *block)), strict=True):
                grid.add_row(*cells)
            yield grid

    @staticmethod
    def _width(column: tuple[str, Sequence[Text]]) -> int:
        name, cells = column
        return max([*map(cell_len, name.split("\n")), *(cell.cell_len for cell in cells)])


def _table(table: Table) -> _Columns:
    rows = table.rows
    styles = ["bold" if row.best else "dim" if row.kind == "published" else "" for row in rows]
    columns = [
        ("method", [Text(row.label, style=style) for row, style in zip(rows, styles, strict=True)]),
        ("Δ-MTL ↑", [_delta(row.delta) for row in rows]),
        ("seeds", [Text(formats.count(row)) for row in rows]),
        ("standing", [Text(formats.standing(row)) for row in rows]),
    ]
    if table.reference:
        columns.append((f"p vs\n{table.reference}", [Text(formats.p_value(row.versus)) for row in rows]))
    columns.append(("rank", [Text(formats.rank(row)) for row in rows]))
    columns.append(("training", [Text(formats.seconds(row.seconds)) for row in rows]))
    for column in table.columns:
        name = f"{column.task}\n{formats.heading(column)}"
        columns.append((name, [Text(formats.score(row.cells.get(column.key))) for row in rows]))
    return _Columns(columns, frozenset(("method", "standing")))


def _delta(summary: Summary | None) -> Text:
    colour = ""
    if summary is not None and abs(summary.mean) > (summary.half_width or 0.0):
        colour = "green" if summary.mean > 0 else "red"
    return Text(formats.percent(summary), style=colour)


def _notes(table: Table) -> list[Text]:
    notes = [Text(f"{row.label}, {why}", style="red") for row in table.rows for why in row.missing]
    if table.reference:
        words = f"p: paired t test against {table.reference}, Holm-corrected; ± 95 % interval over seeds"
        notes.append(Text(words, style="dim"))
    return notes


def side_by_side(board: Board, a: str, b: str) -> RenderableType:
    """Return two rows side by side, in every table that has both, with paired tests over common seeds.

    Raises `MtlbenchError` where a row is unknown or no table has both.
    """
    known = sorted({row.label for table in board.tables for row in table.rows if row.kind != "published"})
    for label in (a, b):
        if label not in known:
            raise MtlbenchError(
                f"no row '{label}'.{did_you_mean(label, known)} Rows: {', '.join(known) or 'none'}"
            )
    parts: list[RenderableType] = []
    for table in board.tables:
        found = [next((row for row in table.rows if row.label == label), None) for label in (a, b)]
        if found[0] is not None and found[1] is not None:
            parts += ["", _title(table), "", _compared(table, found[0], found[1])]
    if not parts:
        raise MtlbenchError(f"'{a}' and '{b}' never share a table: their data, tasks or protocol differ")
    words = (
        "p: paired t test over common seeds, Holm-corrected over the lines; ± 95 % interval of the difference"
    )
    return Padding(Group(*parts, Text(words, style="dim")), (0, 0, 0, 1), expand=False)


def _compared(table: Table, one: Row, two: Row) -> Grid:
    grid = _grid()
    for name in ("", one.label, two.label, "difference", "seeds", "p"):
        grid.add_column(name, justify="right" if name else "left")
    lines: list[tuple[str, dict[int, float], dict[int, float]]] = []
    if one.deltas or two.deltas:
        lines.append(("Δ-MTL ↑ [%]", one.deltas, two.deltas))
    for column in table.columns:
        scores = [
            {s.seed: score for s in row.seeds if (score := s.score(column.key)) is not None}
            for row in (one, two)
        ]
        lines.append((f"{column.task} {formats.heading(column)}", scores[0], scores[1]))
    shared = [sorted(first.keys() & second.keys()) for _, first, second in lines]
    gaps = [
        {seed: second[seed] - first[seed] for seed in seeds}
        for (_, first, second), seeds in zip(lines, shared, strict=True)
    ]
    # A difference against zero is a row of its own, so that all lines are corrected together.
    tests = versus([dict.fromkeys({s for gap in gaps for s in gap}, 0.0), *gaps], 0)[1:]
    for (name, first, second), gap, test in zip(lines, gaps, tests, strict=True):
        cells = [
            formats.score(summarise(list(found.values())) if found else None) for found in (first, second)
        ]
        difference = formats.score(summarise([gap[seed] for seed in sorted(gap)])) if gap else formats.MISSING
        grid.add_row(name, *cells, difference, str(len(gap)), formats.p_value(test))
    return grid
