"""Small SVG pictures for the page: bars, curves, the Pareto plot.

They have classes and no style attributes, so that a strict content security policy holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from mtlbench.results import Summary
from mtlbench.results.statistics import Ranking

POINTS = 40
"""A curve is drawn through at most so many points; more cannot be seen at its size."""


BAR, TALL = 110, 34
"""Width and height of a row's bar, in pixels: as high as the row, so that the zero lines make one line."""


def ends(means: Sequence[float]) -> tuple[float, float]:
    """Return where the bars of a column begin and end, in %: around zero and all means, with a rim."""
    low, high = min([0.0, *means]), max([0.0, *means])
    rim = 0.2 * (high - low) or 1e-9
    return low - rim, high + rim


def _along(value: float, between: tuple[float, float]) -> float:
    """Return where a value stands on a bar."""
    low, high = between
    return BAR * (max(low, min(high, value)) - low) / (high - low)


def bar(summary: Summary, between: tuple[float, float]) -> Markup:
    """Draw a Δ-MTL from the zero line, with its interval, on a bar between these `ends`."""
    zero, end, middle = _along(0, between), _along(summary.mean, between), TALL // 2
    kind = "good" if summary.mean > 0 else "bad"
    path = ""
    if summary.half_width is not None:
        low, high = summary.mean - summary.half_width, summary.mean + summary.half_width
        path = f"M{_along(low, between):.1f} {middle}H{_along(high, between):.1f}"
        # An end that lies outside the picture has no cap: the line runs out of it.
        for value in (low, high):
            if between[0] < value < between[1]:
                path += f"M{_along(value, between):.1f} {middle - 3}v6"
    return Markup(
        f'<svg class="bar" width="{BAR}" height="{TALL}" aria-hidden="true"><rect class="{kind}"'
        f' x="{min(zero, end):.1f}" y="{middle - 6}" width="{abs(end - zero):.1f}" height="12"/>'
        f'<path class="axis" d="M{zero:.1f} 0V{TALL}"/>'
        + (f'<path class="whisker" d="{path}"/></svg>' if path else "</svg>")
    )


def ruler(between: tuple[float, float]) -> Markup:
    """Draw what the bars of a column are read by: the zero line and round numbers where there is room."""
    zero, room = _along(0, between), 11  # half of a number's width
    places = {tick: _along(tick, between) for tick in _ticks(*between)}
    fits = [tick for tick, x in places.items() if abs(x - zero) >= 2 * room and room <= x <= BAR - room]
    shown = {min([0.0, *fits]), 0.0, max([0.0, *fits])}
    parts = [
        f'<path class="axis" d="M{_along(value, between):.1f} 14v4"/>'
        + _text(_along(value, between), 11, signed(value), "middle")
        for value in sorted(shown)
    ]
    return Markup(f'<svg class="bar" width="{BAR}" height="18" aria-hidden="true">{"".join(parts)}</svg>')


def signed(value: float) -> str:
    """Write a round number with its sign."""
    return f"{value:+g}".replace("-", "\N{MINUS SIGN}") if value else "0"


def curves(lines: Sequence[Sequence[float | None]], label: str) -> Markup:
    """Draw one line a seed over epochs 1, 2, …; gaps stay gaps."""
    width, height, left, base = 220, 96, 44, 80
    known = [value for line in lines for value in line if value is not None and math.isfinite(value)]
    if not known or max(map(len, lines)) < 2:
        return Markup("")
    low, high = min(known), max(known)
    span = (high - low) or 1.0
    last = max(len(line) for line in lines) - 1
    parts = [
        f'<line class="axis" x1="{left}" y1="{base}" x2="{width - 4}" y2="{base}"/>',
        _text(left - 4, 12, f"{high:.3g}", "end"),
        _text(left - 4, base, f"{low:.3g}", "end"),
        _text(left, height - 2, "epoch 1"),
        _text(width - 4, height - 2, str(last + 1), "end"),
    ]
    for line in lines:
        stride = max(1, math.ceil(len(line) / POINTS))
        kept = sorted({*range(0, len(line), stride), len(line) - 1}) if line else []
        path, pen = [], "M"
        for place in kept:
            value = line[place]
            if value is None or not math.isfinite(value):
                pen = "M"
                continue
            x = left + (width - 4 - left) * place / last
            path.append(f"{pen}{x:.0f} {base - (base - 8) * (value - low) / span:.0f}")
            pen = "L"
        parts.append(f'<path class="line" d="{"".join(path)}"/>')
    return Markup(
        f'<svg width="{width}" height="{height}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, words: str, anchor: str = "start", kind: str = "soft") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


@dataclass(frozen=True)
class Point:
    """One row of the Pareto plot; ``target`` is the id that its link leads to."""

    label: str
    seconds: float
    delta: float
    front: bool
    target: str


def pareto(points: Sequence[Point], label: str) -> Markup:
    """Draw Δ-MTL in % against training time in seconds (logarithmic), the front marked and joined."""
    width, height, left, right, top, base = 720, 340, 56, 700, 16, 300
    times = [math.log10(max(p.seconds, 1e-3)) for p in points]
    low, high = min(times), max(times)
    room = (high - low) * 0.08 or 0.1
    low, high = low - room, high + room * 2
    deltas = [p.delta for p in points] + [0.0]
    bottom, ceiling = min(deltas), max(deltas)
    air = (ceiling - bottom) * 0.1 or 1.0
    bottom, ceiling = bottom - air, ceiling + air

    def x(seconds: float) -> float:
        return left + (right - left) * (math.log10(max(seconds, 1e-3)) - low) / (high - low)

    def y(delta: float) -> float:
        return base - (base - top) * (delta - bottom) / (ceiling - bottom)

    parts = []
    for tick in _ticks(bottom, ceiling):
        kind = "axis" if tick == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{left}" y1="{y(tick):.1f}" x2="{right}" y2="{y(tick):.1f}"/>')
        parts.append(_text(left - 6, y(tick) + 4, f"{signed(tick)} %", "end"))
    for seconds in _times(10**low, 10**high):
        parts.append(
            f'<line class="grid" x1="{x(seconds):.1f}" y1="{top}" x2="{x(seconds):.1f}" y2="{base}"/>'
        )
        parts.append(_text(x(seconds), base + 16, _short(seconds), "middle"))
    parts.append(_text(right, height - 4, "training time of all tasks →", "end"))
    front = sorted((p for p in points if p.front), key=lambda p: p.seconds)
    if len(front) > 1:
        path = "L".join(f"{x(p.seconds):.1f} {y(p.delta):.1f}" for p in front)
        parts.append(f'<path class="frontier" d="M{path}"/>')
    spots = [(x(p.seconds), y(p.delta)) for p in points]
    boxes: list[tuple[float, float, float, float]] = []
    drawn = []
    # The front takes its labels first, and is drawn last, over the others.
    for p in sorted(points, key=lambda p: (not p.front, -p.delta, p.label)):
        cx, cy = x(p.seconds), y(p.delta)
        title = escape(f"{p.label}: {p.delta:+.2f} % in {_short(p.seconds)}")
        kind, radius = ("front", 6) if p.front else ("point", 4.5)
        circle = f'<circle class="{kind}" cx="{cx:.1f}" cy="{cy:.1f}" r="{radius}"/>'
        words = _beside(p.label, cx, cy, right, boxes, spots)
        drawn.append(
            f'<a href="#{escape(p.target)}" aria-label="{title}"><title>{title}</title>{circle}{words}</a>'
        )
    parts += reversed(drawn)
    return Markup(
        f'<svg class="plot pareto" viewBox="0 0 {width} {height}" role="group" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def critical_difference(ranking: Ranking, label: str) -> Markup:
    """Draw methods on an axis of mean ranks, the best on the left; a bar joins what is not told apart.

    Source: Demšar, JMLR 2006, figure 1.
    """
    names, ranks, groups = ranking.methods, ranking.ranks, ranking.groups
    width, left, right, axis, line = 720, 190.0, 530.0, 44.0, 20.0
    # Ranks leave no room at the end for a ruler of the critical difference: the axis is at least as long.
    low = math.floor(ranks[0])
    high = max(math.ceil(ranks[-1]), low + math.ceil(ranking.critical))

    def x(rank: float) -> float:
        return left + (right - left) * (rank - low) / (high - low)

    def stroke(kind: str, *points: tuple[float, float]) -> str:
        path = "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
        return f'<path class="{kind}" d="M{path}"/>'

    ends: list[float] = []  # of the last bar on each level
    levels = []
    for first, last in groups:
        level = next((i for i, end in enumerate(ends) if x(ranks[first]) - end > 8), len(ends))
        ends[level : level + 1] = [x(ranks[last])]
        levels.append(level)
    top = axis + 10 + 7 * len(ends)
    half = (len(names) + 1) // 2
    parts = [stroke("axis", (left, axis), (right, axis))]
    for tick in _ticks(low, high) if high - low > 8 else range(low, high + 1):
        parts.append(stroke("axis", (x(tick), axis - 4), (x(tick), axis)))
        parts.append(_text(x(tick), axis - 8, f"{tick:g}", "middle"))
    rule = 12.0
    parts.append(
        stroke("whisker", (x(low), rule - 4), (x(low), rule + 4))
        + stroke("whisker", (x(low), rule), (x(low + ranking.critical), rule))
        + stroke("whisker", (x(low + ranking.critical), rule - 4), (x(low + ranking.critical), rule + 4))
        + _text(x(low + ranking.critical) + 7, rule + 4, f"critical difference {ranking.critical:.2f}")
    )
    for (first, last), level in zip(groups, levels, strict=True):
        y = axis + 9 + 7 * level
        parts.append(stroke("alike", (x(ranks[first]) - 2, y), (x(ranks[last]) + 2, y)))
    for place, (name, rank) in enumerate(zip(names, ranks, strict=True)):
        best = place < half
        y = top + line * (place if best else len(names) - 1 - place)
        edge, sign = (left, -1) if best else (right, 1)
        parts.append(stroke("leader", (x(rank), axis), (x(rank), y), (edge + sign * 4, y)))
        parts.append(
            _text(edge + sign * 9, y + 4, f"{name}  {rank:.2f}", "end" if best else "start", "label")
        )
    height = top + line * half
    return Markup(
        f'<svg class="plot" viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _beside(
    label: str,
    cx: float,
    cy: float,
    right: float,
    boxes: list[tuple[float, float, float, float]],
    spots: Sequence[tuple[float, float]],
) -> str:
    """Write a label where it covers no other label and no other point; nothing where there is no room.

    Every point tells its name when it is focused, so none is lost. boxes: of the labels so far; added to.
    """
    wide = 6.4 * len(label)
    for dx, dy in ((9, 4), (-9, 4), (0, -10), (0, 18)):
        start = cx + dx - (wide if dx < 0 else wide / 2 if dx == 0 else 0)
        box = (start, cy + dy - 10, start + wide, cy + dy + 2)
        hidden = any(
            (sx, sy) != (cx, cy) and box[0] - 6 < sx < box[2] + 6 and box[1] - 5 < sy < box[3] + 5
            for sx, sy in spots
        )
        crossed = any(
            box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
            for other in boxes
        )
        if not hidden and not crossed and box[0] > 0 and box[2] < right + 20:
            boxes.append(box)
            anchor = "end" if dx < 0 else "middle" if dx == 0 else "start"
            return _text(cx + dx, cy + dy, label, anchor, "label")
    return ""


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers between the bounds, about six."""
    raw = (high - low) / 6
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    first = math.ceil(low / step)
    return [round(step * i, 10) + 0.0 for i in range(first, math.floor(high / step) + 1)]


def _times(low: float, high: float) -> list[float]:
    marks = [
        1,
        2,
        5,
        10,
        20,
        30,
        60,
        120,
        300,
        600,
        1200,
        1800,
        3600,
        7200,
        14400,
        28800,
        86400,
        172800,
        604800,
    ]
    inside = [float(mark) for mark in marks if low <= mark <= high]
    return inside if len(inside) > 2 else [tick for tick in _ticks(low, high) if tick > 0]


def _short(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 3600 else f"{seconds / 3600:.3g} h"
