"""The profile as a picture: accuracy by depth, and beside it by number of labels."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topwork.data.files import write_atomically
from topwork.report.profile_words import (
    Profile,
    best_of,
    factor_of,
    head_of,
    short_name,
    sign_of,
    words_on_labels,
)
from topwork.report.words import SHARES, UNIT, amount, metric_name, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which people with any color vision can tell apart, without its yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)))  # for the second seven networks, and the third
INK, FAINT, GRID = "#222222", "#666666", "#E6E6E6"
WIDTH, PLOT, SIDE = 11.0, 3.7, 2.6  # inches: the page, the panels' height, the right panel
LEFT, RIGHT, HEAD, HEADLINE = 0.6, 0.3, 0.82, 0.25
LETTER, LINE = 0.066, 0.125  # inches, of a name at the axis
DOTS = 120  # pixels to the inch
NEAR, MARGIN = 0.35, 0.06  # of the range of values


def draw_profile(profiles: Sequence[Profile], path: str | Path) -> None:
    """Draw how accurate linear probes are at every depth, and how that grows with the labels.

    One network is drawn with the names of its cut points, those that end a stage in bold; several
    share a panel over relative depth. Bands are 95 % intervals. The headline is made from the
    numbers.

    Args:
        profiles: of one data set, as `topwork.advising.profile` gives them; the colors follow their
            order.
        path: a file to write, ``.png`` or ``.svg``; it is there whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    names = _names(profiles)
    foot = 0.6 + (LETTER * max(map(len, names)) if _upright(profiles) else 0.06)
    lines = head_of(profiles)
    height = HEAD + HEADLINE * len(lines) + PLOT + foot
    gap = 0.35 + (0.078 * max(map(len, _ends(profiles))) if len(profiles) > 1 else 0.0)
    figure = Figure(figsize=(WIDTH, height), dpi=DOTS, facecolor="white")
    main_width = WIDTH - LEFT - gap - SIDE - RIGHT
    size = (foot / height, PLOT / height)
    main = figure.add_axes((LEFT / WIDTH, size[0], main_width / WIDTH, size[1]))
    left = (WIDTH - SIDE - RIGHT) / WIDTH
    side = figure.add_axes((left, size[0], SIDE / WIDTH, size[1]), sharey=main)
    if len(profiles) == 1:
        _draw_one(main, profiles[0], main_width)
    else:
        _draw_several(main, profiles)
    _draw_labels(side, profiles)
    _set_range((main, side), profiles)
    if len(profiles) > 1:
        _name_ends(main, profiles)
    for panel in (main, side):
        _clear(panel)
    side.tick_params(labelleft=False)
    _write_head(figure, profiles, lines, height)
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # dollars in names are no formula
    suffix = Path(path).suffix[1:].lower()
    drawn = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # names in scripts that no font has
        figure.savefig(drawn, format=suffix, metadata={"Date": None} if suffix == "svg" else None)
    write_atomically(Path(path), drawn.getvalue())


def _draw_one(panel: Axes, profile: Profile, width: float) -> None:
    """Draw one network, its cut points side by side."""
    depths = profile["depths"]
    places = list(range(len(depths)))
    best = depths.index(best_of(profile))
    _draw_line(panel, places, [profile], 0)
    shown = _written(depths, best, math.floor(width / LINE))
    panel.set_xticks(shown)
    panel.set_xticklabels([depths[place]["name"] for place in shown], size=8)
    for place, label in zip(shown, panel.get_xticklabels(), strict=True):
        ends = depths[place]["stage_end"]
        label.set(color=INK if ends else FAINT, fontweight="bold" if ends else "normal")
        if _upright([profile]):
            label.set(rotation=90, verticalalignment="top")
    panel.set_xlim(-0.6, len(depths) - 0.4)
    for place in (place for place in places if depths[place]["stage_end"]):
        panel.axvline(place, color=GRID, lw=0.8, zorder=0)
    panel.set_xlabel(
        "cut points from the input to the top; bold: the end of a stage; ring: the least loss",
        color=FAINT,
        size=9,
    )
    _mark(panel, profile, best, width)


def _mark(panel: Axes, profile: Profile, best: int, width: float) -> None:
    """Ring the depth with the least loss; write what it gives, and the top if that is far away."""
    from matplotlib.patheffects import withStroke

    depths, metric = profile["depths"], profile["metric"]
    last = len(depths) - 1
    panel.plot(
        best, factor_of(metric) * depths[best]["value"], "o", clip_on=False, **_ring(COLORS[0])
    )
    marked = [best, last] if (last - best) / len(depths) * width > 0.8 else [best]
    for place in marked:
        ends = sorted(depths[place]["interval"], key=sign_of(metric).__mul__)
        panel.annotate(
            amount(metric, depths[place]["value"]),
            (place, factor_of(metric) * ends[1]),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            color=INK if place == best else FAINT,
            weight="bold" if place == best else "normal",
            size=10,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )


def _draw_several(panel: Axes, profiles: Sequence[Profile]) -> None:
    """Draw several networks over relative depth, each named at its line's end."""
    for number, profile in enumerate(profiles):
        depths, metric = profile["depths"], profile["metric"]
        places = [depth["depth"] / depths[-1]["depth"] for depth in depths]
        _draw_line(panel, places, profiles, number)
        best = depths.index(best_of(profile))
        ring = _ring(COLORS[number % len(COLORS)])
        panel.plot(
            places[best], factor_of(metric) * depths[best]["value"], "o", clip_on=False, **ring
        )
    panel.set_xlim(0, 1.01)
    panel.set_xticks([0, 0.25, 0.5, 0.75, 1])
    panel.set_xticklabels(
        ["input", "a quarter", "half", "three quarters", "top"], size=9, color=INK
    )
    panel.set_xlabel("relative depth, by cut points; ring: the least loss", color=FAINT, size=9)


def _draw_line(
    panel: Axes, places: Sequence[float], profiles: Sequence[Profile], number: int
) -> None:
    """Draw the values at depths, their intervals as a band; dots where a stage ends are larger."""
    depths, metric = profiles[number]["depths"], profiles[number]["metric"]
    color, dash = COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]
    factor = factor_of(metric)
    values = [factor * depth["value"] for depth in depths]
    low, high = ([factor * depth["interval"][end] for depth in depths] for end in (0, 1))
    panel.fill_between(places, low, high, color=color, alpha=_faintness(profiles), lw=0)
    panel.plot(places, values, color=color, lw=2, ls=dash)
    sizes = [26 if depth["stage_end"] else 9 for depth in depths]
    panel.scatter(places, values, s=sizes, color=color, zorder=3, lw=0)


def _draw_labels(panel: Axes, profiles: Sequence[Profile]) -> None:
    """Draw how the best depth of each network does with fewer labels, and what twice would add."""
    images: list[float] = []
    for number, profile in enumerate(profiles):
        curve, metric = profile["learning_curve"], profile["metric"]
        points = curve["points"]
        color, factor = COLORS[number % len(COLORS)], factor_of(metric)
        counts = [point["images_per_class"] for point in points]
        low, high = ([factor * point["interval"][end] for point in points] for end in (0, 1))
        values = [factor * point["value"] for point in points]
        panel.fill_between(counts, low, high, color=color, alpha=_faintness(profiles), lw=0)
        panel.plot(counts, values, "o-", color=color, lw=2, ms=4)
        images = max(images, counts, key=len)
        if metric == "accuracy" and len(points) > 1:
            doubling, last = curve["doubling"], values[-1]
            twice = 2 * counts[-1]
            ends = [min(last + 100 * end, 100.0) for end in doubling["interval"]]
            expected = min(last + 100 * doubling["value"], 100.0)
            panel.plot([counts[-1], twice], [last, expected], "--", color=color, lw=1.6)
            panel.plot([twice, twice], ends, color=color, lw=2, alpha=0.5, solid_capstyle="round")
            panel.plot(twice, expected, "o", mfc="white", mec=color, ms=5)
            images = [*images, twice] if twice > images[-1] else images
    panel.set_xscale("log")
    panel.set_xticks(images)
    panel.set_xticks([], minor=True)
    panel.set_xticklabels([f"{count:.0f}" for count in images], size=9, color=INK)
    panel.set_xlim(images[0] / 1.25, images[-1] * 1.25)
    panel.set_xlabel(words_on_labels(profiles), color=FAINT, size=9)


def _range(profiles: Sequence[Profile]) -> tuple[float, float]:
    """Return the least and the greatest value shown, chance among them if it is near enough."""
    ends = [
        end
        for profile in profiles
        for point in (*profile["depths"], *profile["learning_curve"]["points"])
        for end in point["interval"]
    ]
    low, high = min(ends), max(ends)
    majority = profiles[0].get("majority")
    if majority is not None and majority > low - NEAR * (high - low):
        low = min(low, majority)
    return low, high


def _set_range(panels: Sequence[Axes], profiles: Sequence[Profile]) -> None:
    """Let the axis hold every band, upside down where less is better; draw chance."""
    metric, majority = profiles[0]["metric"], profiles[0].get("majority")
    low, high = _range(profiles)
    margin = MARGIN * (high - low)
    bottom, top = low - margin, high + margin
    if metric in UNIT:
        bottom, top = max(bottom, 0.0), min(top, 1.0)
    ends = (bottom, top) if sign_of(metric) > 0 else (top, bottom)
    panels[0].set_ylim(*(factor_of(metric) * end for end in ends))
    if majority is not None and majority >= low:
        for panel in panels:
            panel.axhline(100 * majority, color=FAINT, lw=1.2, ls=(0, (4, 3)), zorder=1)


def _name_ends(panel: Axes, profiles: Sequence[Profile]) -> None:
    """Name the lines at their ends, in their colors, without overlap."""
    low, high = panel.get_ylim()
    tops = [factor_of(p["metric"]) * p["depths"][-1]["value"] for p in profiles]
    wanted = [(value - low) / (high - low) for value in tops]
    names = _ends(profiles)
    room, ceiling = 0.052, 1.0
    floor = (len(names) - 1) * room
    for number in sorted(range(len(names)), key=lambda number: -wanted[number]):
        ceiling = max(min(wanted[number], ceiling), min(floor, ceiling))
        panel.annotate(
            names[number],
            (1.0, ceiling),
            xycoords="axes fraction",
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=COLORS[number % len(COLORS)],
            size=9.5,
            annotation_clip=False,
        )
        ceiling, floor = ceiling - room, floor - room


def _write_head(
    figure: Figure, profiles: Sequence[Profile], lines: list[str], height: float
) -> None:
    """Write the headline, what was measured, and what each panel shows."""
    first, one = profiles[0], len(profiles) == 1
    left = 0.18 / WIDTH
    down = 0.16 / height
    figure.text(left, 1 - down, "\n".join(lines), va="top", size=14, weight="bold", color=INK)
    size = "x".join(map(str, first["input_size"]))
    classes = f" of {len(first['classes'])} classes" if first["metric"] == "accuracy" else ""
    where = f"{short_name(first)} at {size} pixels, " if one else ""
    measured = (
        f"{where}{first['images']} images{classes}; out of {first['folds']} folds, with 95 %"
        " intervals"
    )
    if first["majority"] is not None:
        dashed = "dashed: " if first["majority"] >= _range(profiles)[0] else ""
        measured += f"; {dashed}the most frequent class, {percent(first['majority'])}"
    down += (0.06 + HEADLINE * len(lines)) / height
    figure.text(left, 1 - down, measured, va="top", size=9.5, color=FAINT)
    metric = metric_name(first["metric"])
    less = "" if sign_of(first["metric"]) > 0 else "; less is better"
    unit = ", %" if first["metric"] in SHARES else ""
    main, side = figure.axes
    main.set_title(
        f"{metric} of linear probes by depth{unit}{less}", size=10, loc="left", color=INK
    )
    where = "at the best depth" if one else "each at its best"
    side.set_title(f"with fewer labels, {where}", size=10, loc="left", color=INK)


def _faintness(profiles: Sequence[Profile]) -> float:
    """Return how opaque bands are: many lie on top of each other."""
    return min(0.14, 0.4 / len(profiles))


def _ring(color: str) -> dict[str, Any]:
    """Return how the best depth is marked."""
    return {"ms": 12, "mfc": "none", "mec": color, "mew": 1.7}


def _clear(panel: Axes) -> None:
    panel.grid(axis="y", color=GRID, lw=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(axis="both", which="both", length=0)
    panel.tick_params(axis="y", colors=FAINT, labelsize=9)
    for side in panel.spines.values():
        side.set_visible(False)


def _names(profiles: Sequence[Profile]) -> list[str]:
    """Return the names along the main panel's axis."""
    return [depth["name"] for depth in profiles[0]["depths"]] if len(profiles) == 1 else ["input"]


def _ends(profiles: Sequence[Profile]) -> list[str]:
    """Return what is written at the ends of several lines."""
    return [short_name(profile) for profile in profiles]


def _upright(profiles: Sequence[Profile]) -> bool:
    """Say whether names are turned upright, for want of room."""
    names = _names(profiles)
    width = WIDTH - LEFT - SIDE - RIGHT - 0.35
    return len(profiles) == 1 and LETTER * (max(map(len, names)) + 2) * len(names) > width


def _written(depths: Sequence[dict], best: int, room: int) -> list[int]:
    """Return the places whose names are written: where not all fit, the best and stage ends first.

    >>> ends = [{"stage_end": place % 3 == 2} for place in range(9)]
    >>> _written(ends, 4, 9), _written(ends, 4, 5)
    ([0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 2, 4, 6, 8])
    """
    last = len(depths) - 1
    apart = math.ceil(len(depths) / room)
    shown: list[int] = []
    for place in sorted(
        range(len(depths)), key=lambda k: (k not in (best, last), not depths[k]["stage_end"], k)
    ):
        if all(abs(place - other) >= apart for other in shown):
            shown.append(place)
    return sorted(shown)
