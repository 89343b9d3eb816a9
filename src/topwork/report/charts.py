"""Charts as plain geometry: where lines, bands and dots lie on a canvas of 1000 by 1000.

The templates stretch the canvas to the width at hand, a phone's or a laptop's, with strokes that do
not scale; words stand beside it, so they keep their size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from topwork.report.scales import Point, Scale, Tick, named, top

LETTER = 6.4  # pixels, the width of one in a label


@dataclass(frozen=True)
class Dot:
    """A point with the words that appear when it is pointed at; ``x`` from left, ``y`` from top."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Curve:
    """A line through points, perhaps with a band around it; paths in SVG's notation.

    Attributes:
        name: in the legend.
        color: "main", "second" or "faint".
        dots: the points.
        line: through them.
        band: from interval to interval.
        whiskers: the intervals, each by itself.
    """

    name: str
    color: str
    dots: tuple[Dot, ...]
    line: str = ""
    band: str = ""
    whiskers: str = ""


@dataclass(frozen=True)
class Mark:
    """A vertical line with a word above it, at a place from the left."""

    place: float
    label: str


@dataclass(frozen=True)
class Chart:
    """Curves over two axes.

    Attributes:
        title: what it shows.
        x_title: what runs to the right.
        x_ticks: along it.
        y_ticks: from below.
        curves: the later on top of the earlier.
        marks: vertical lines.
        diagonal: a dashed line on which both axes say the same, as a path.
        bars: bars from below, as one path.
        upright: whether the x labels are turned upright, since they are long.
        foot: pixels that they need.
    """

    title: str
    x_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[Curve, ...] = ()
    marks: tuple[Mark, ...] = ()
    diagonal: str = ""
    bars: str = ""
    upright: bool = False
    foot: int = 26


def curve(
    name: str,
    color: str,
    points: Sequence[Point],
    x: Scale,
    y: Scale,
    words: Callable[[int], str],
) -> Curve:
    """Return a line through points, with a band around it where they have intervals.

    Args:
        name: in the legend.
        color: see `Curve`.
        points: at least one.
        x: the horizontal scale.
        y: the vertical one.
        words: from a point's number to what is said about it.
    """
    dots = place_dots(points, x, y, words)
    limits = [(x.place(p[0]), top(y, p[2][0]), top(y, p[2][1])) for p in points if p[2]]
    there = [f"{across:g} {high:g}" for across, _, high in limits]
    back = [f"{across:g} {low:g}" for across, low, _ in reversed(limits)]
    line = "M" + "L".join(f"{dot.x:g} {dot.y:g}" for dot in dots)
    band = "M" + "L".join(there + back) + "Z" if len(limits) > 1 else ""
    return Curve(name, color, dots, line, band)


def scattered(
    name: str,
    color: str,
    points: Sequence[Point],
    x: Scale,
    y: Scale,
    words: Callable[[int], str],
) -> Curve:
    """Return points by themselves, each with its interval where it has one; else as `curve`."""
    whiskers = [
        f"M{x.place(across):g} {top(y, ends[0]):g}V{top(y, ends[1]):g}"
        for across, _, ends in points
        if ends
    ]
    return Curve(name, color, place_dots(points, x, y, words), whiskers="".join(whiskers))


def place_dots(
    points: Sequence[Point], x: Scale, y: Scale, words: Callable[[int], str]
) -> tuple[Dot, ...]:
    """Return where points lie, with what is said about each."""
    return tuple(
        Dot(x.place(point[0]), top(y, point[1]), words(number))
        for number, point in enumerate(points)
    )


def by_name(
    title: str,
    x_title: str,
    names: Sequence[str],
    color: str,
    points: Sequence[Point],
    y: Scale,
    words: Callable[[int], str],
    marks: Mapping[int, str],
) -> Chart:
    """Return a chart of one curve over names that stand upright, since they are long.

    Args:
        title: what it shows.
        x_title: what runs to the right.
        names: along the axis, at 0, 1, 2, ...
        color: of the curve.
        points: of the curve.
        y: its scale.
        words: what is said about each point.
        marks: by the number of a name, the word above a vertical line there.
    """
    x = named(names, list(marks))
    return Chart(
        title=title,
        x_title=x_title,
        x_ticks=x.ticks,
        y_ticks=y.ticks,
        curves=(curve("", color, points, x, y, words),),
        marks=tuple(Mark(x.place(number), word) for number, word in marks.items()),
        upright=True,
        foot=min(130, 14 + round(LETTER * max(len(tick.label) for tick in x.ticks))),
    )


def diagonal(x: Scale, y: Scale) -> str:
    """Return the line on which both axes say the same, as a path.

    >>> diagonal(Scale(0.5, 1), Scale(0, 1))
    'M0 500L1000 0'
    """
    low, high = max(x.low, y.low), min(x.high, y.high)
    return f"M{x.place(low):g} {top(y, low):g}L{x.place(high):g} {top(y, high):g}"


def bars(columns: Sequence[tuple[float, float, float]], x: Scale, y: Scale) -> str:
    """Return bars from below as one path, each given by its left and right end and its height."""
    parts = []
    for low, high, value in columns:
        left, right = x.place(low) + 2, x.place(high) - 2
        parts.append(f"M{left:g} 1000V{top(y, value):g}H{right:g}V1000Z")
    return "".join(parts)


@dataclass(frozen=True)
class Range:
    """A value and its interval on an axis of their own, as places from 0 to 1000."""

    low: float
    value: float
    high: float


def interval(row: dict, scale: Scale) -> Range | None:
    """Return where a value with an interval lies on a scale; None where it is not defined.

    >>> interval({"value": 0.5, "interval": [0.25, 0.75]}, Scale(0, 1))
    Range(low=250.0, value=500.0, high=750.0)
    """
    if row.get("value") is None:
        return None
    low, high = row.get("interval") or (row["value"], row["value"])
    return Range(scale.place(low), scale.place(row["value"]), scale.place(high))
