"""Pictures of results, drawn with Matplotlib's objects alone: no window, no global state."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from topwork.study.digits import CLASSES, load_images
from topwork.study.transfer import Row, Transfer, Way, finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which people with any color vision can tell apart.
COLORS: dict[Way, str] = {
    "reused": "#0072B2",
    "random": "#8C8C8C",
    "fine-tuned": "#009E73",
    "scratch": "#D55E00",
}
LABELS: dict[Way, str] = {
    "reused": "reused, frozen",
    "random": "random, frozen",
    "fine-tuned": "all reused,\nfine-tuned",
    "scratch": "from scratch",
}
INK, FAINT = "#222222", "#666666"
WIDTH, HEIGHT, DOTS = 10.0, 5.6, 100  # inches, inches, pixels to the inch


def draw_transfer(result: Transfer, path: str | Path) -> None:
    """Draw accuracy by depth reused, a panel for each number of labels, as a PNG.

    Bands are the 95 % intervals over seeds. The headline is computed from the result.

    Args:
        result: of the digits study.
        path: file to write, 1000 x 560 pixels.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MultipleLocator

    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DOTS, facecolor="white")
    panels = figure.subplots(1, len(result.labels_per_class), sharey=True, squeeze=False)[0]
    figure.subplots_adjust(left=0.07, right=0.865, top=0.775, bottom=0.34, wspace=0.07)
    for panel, count in zip(panels, result.labels_per_class, strict=True):
        _draw_panel(panel, result, count)
    panels[0].set_ylim(_floor(result.rows), 100)
    panels[0].yaxis.set_major_locator(MultipleLocator(5))
    panels[0].set_ylabel(f"accuracy on {result.test_count} images, %", color=FAINT)
    middle = panels[len(panels) // 2]
    middle.set_xlabel("source layers reused, from the first up to", color=FAINT, labelpad=6)
    _label_ends(panels[-1], result)
    headline = textwrap.fill(finding(result), 88)
    figure.text(0.015, 0.965, headline, va="top", size=13.5, weight="bold", color=INK)
    _draw_digits(figure)
    figure.savefig(path, format="png")


def _draw_panel(panel: Axes, result: Transfer, count: int) -> None:
    (pixels,) = result.select("pixels", count)
    for way in ("random", "reused"):
        rows = [pixels, *result.select(way, count)]
        steps = range(len(rows))
        panel.plot(steps, [100 * row.mean for row in rows], "o-", color=COLORS[way], lw=2, ms=5)
        panel.fill_between(steps, *_bounds(rows), color=COLORS[way], alpha=0.15, lw=0)
    (scratch,) = result.select("scratch", count)
    right = len(result.depths) - 0.4
    panel.axhline(100 * scratch.mean, color=COLORS["scratch"], lw=2)
    (low,), (high,) = _bounds([scratch])
    panel.axhspan(low, high, color=COLORS["scratch"], alpha=0.12, lw=0)
    (tuned,) = result.select("fine-tuned", count)
    (low,), (high,) = _bounds([tuned])
    panel.plot([right, right], [low, high], color=COLORS["fine-tuned"], lw=2, alpha=0.5)
    panel.plot([right], [100 * tuned.mean], "D", color=COLORS["fine-tuned"], ms=6)
    panel.set_title(f"{count} labels per class", size=11, loc="left", color=INK, pad=22)
    panel.text(
        0,
        1.03,
        _gain(result.select("reused", count)[-1]),
        transform=panel.transAxes,
        size=9,
        color=FAINT,
    )
    panel.set_xticks([*range(len(result.depths)), right])
    panel.set_xticklabels(["pixels", *result.depths[1:], "all"], size=8.5)
    panel.set_xlim(-0.3, right + 0.35)
    panel.grid(axis="y", color="#E6E6E6", lw=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(length=0, colors=FAINT)
    for side in panel.spines.values():
        side.set_visible(False)


def _label_ends(panel: Axes, result: Transfer) -> None:
    """Name the lines at the right of the last panel, in their colors, without overlap."""
    count = result.labels_per_class[-1]
    means: dict[Way, float] = {way: 100 * result.select(way, count)[-1].mean for way in COLORS}
    low, high = panel.get_ylim()
    gap, ceiling = (high - low) * 0.14, high
    for way in sorted(means, key=means.__getitem__, reverse=True):
        ceiling = min(means[way], ceiling - gap if ceiling < high else high)
        panel.annotate(
            LABELS[way],
            (1.0, ceiling),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=COLORS[way],
            size=10,
            linespacing=0.95,
            annotation_clip=False,
        )


def _draw_digits(figure: Figure) -> None:
    """Show at the bottom what the two tasks are about."""
    images, digits = load_images()
    shown = [images[digits == digit][:2, 0].numpy() for digit in range(2 * CLASSES)]
    source = [(first, np.rot90(second, 1 + k % 3)) for k, (first, second) in enumerate(shown)]
    target = [(first, second) for first, second in shown]
    _draw_tiles(figure, 0.07, source[:CLASSES], "Source", "which of 0-4,\nturned how far?")
    _draw_tiles(figure, 0.54, target[CLASSES:], "Target", "which of 5-9,\nfrom a few labels?")
    figure.text(0.465, 0.115, "layers\nreused →", ha="center", va="center", size=10, color=FAINT)


def _draw_tiles(
    figure: Figure,
    left: float,
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    name: str,
    question: str,
) -> None:
    """Draw a column of two digits for each class, and the task's name and question beside them."""
    rows = [np.hstack([np.pad(pair[row], 1) for pair in pairs]) for row in range(2)]
    mosaic = np.vstack(rows)
    width, height = 0.2, 0.2 * WIDTH / HEIGHT * mosaic.shape[0] / mosaic.shape[1]
    tiles = figure.add_axes((left, 0.115 - height / 2, width, height))
    tiles.imshow(mosaic, cmap="gray_r", interpolation="nearest")
    tiles.set_axis_off()
    beside = left + width + 0.012
    figure.text(beside, 0.155, name, va="center", size=11, weight="bold", color=INK)
    figure.text(beside, 0.095, question, va="center", size=10, color=FAINT, linespacing=1.1)


def _bounds(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Return lower and upper ends of the rows' intervals in percent; the means where none are."""
    pairs = [row.interval or (row.mean, row.mean) for row in rows]
    return [100 * low for low, _ in pairs], [min(100 * high, 100.0) for _, high in pairs]


def _gain(row: Row) -> str:
    """Return the uppermost depth's gain over scratch, in points, with its paired interval."""
    interval = [f"{100 * end:+.1f}" for end in row.gain_interval or ()]
    text = f"reused gains {100 * row.gain:+.1f} points"
    return text + (f" [{', '.join(interval)}]" if interval else "")


def _floor(rows: Sequence[Row]) -> float:
    """Return where the axis begins: the next multiple of 5 % below every band."""
    return 5.0 * (min(_bounds(rows)[0]) // 5)
