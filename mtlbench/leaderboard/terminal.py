"""A board in the terminal: the same figures as on the page."""

from __future__ import annotations

from rich.console import Group, RenderableType
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
    return Padding(Group(*parts), (0, 0, 0, 1), expand=False)


def _title(table: Table) -> Text:
    title = Text(f"{table.title}: {', '.join(table.tasks)}", style="bold")
    return title.append(f"\n{formats.facts(table)} · key {table.key}", style="not bold dim")


def _grid() -> Grid:
    return Grid(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")


def _table(table: Table) -> Grid:
    grid = _grid()
    for name in ("method", "Δ-MTL ↑", "seeds", "standing", "rank"):
        grid.add_column(name, justify="left" if name in ("method", "standing") else "right")
    for column in table.columns:
        grid.add_column(f"{column.task}\n{formats.heading(column)}", justify="right")
    grid.add_column("training", justify="right")
    for row in table.rows:
        style = "bold" if row.best else "dim" if row.kind == "published" else ""
        grid.add_row(
            Text(row.label, style=style),
            _delta(row.delta),
            formats.count(row),
            formats.verdict(row),
            "" if row.rank is None else f"{row.rank:.2f}",
            *(formats.score(row.cells.get(column.key)) for column in table.columns),
            formats.seconds(row.seconds),
        )
    return grid


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
        p = "" if test is None or test.p is None else "<0.001" if test.p < 0.001 else f"{test.p:.3f}"
        difference = formats.score(summarise([gap[seed] for seed in sorted(gap)])) if gap else formats.MISSING
        grid.add_row(name, *cells, difference, str(len(gap)), p)
    return grid
