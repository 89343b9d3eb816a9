"""Pictures of a pretraining: its losses by epoch, and what it made to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from topwork.report.pictures import FAINT, INK
from topwork.report.pretraining_words import measured

GAP = 2  # pixels between the pictures of a grid
LEAST_SIDE = 40  # smaller pictures are enlarged, pixel by pixel
GROUND = 255
OWN, THEIRS, OTHER = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito's blue, vermilion, green
ABREAST = 4  # panels in a row, at most, where stages do not have a row each
WIDTH, HEIGHT, DOTS = 4.2, 3.2, 100  # inches, inches, pixels to the inch; of each panel


def draw_pretraining(
    records: Sequence[Mapping[str, Any]], pictures: Mapping[str, np.ndarray], folder: Path
) -> list[str]:
    """Draw losses as ``losses.png`` and each set of pictures as a grid ``NAME.png``.

    Args:
        records: of the epochs, as `topwork.pretraining.stages.Progress.record` gives them.
        pictures: by name, float32 [n, H, W] or [n, H, W, 3] in 0..1, or uint8.
        folder: to write to.

    Returns:
        the names of the files.
    """
    drawn = []
    if records:
        draw_losses(records, folder / "losses.png")
        drawn.append("losses.png")
    for name, images in pictures.items():
        grid(images).save(folder / f"{name}.png")
        drawn.append(f"{name}.png")
    return drawn


def grid(images: np.ndarray) -> Image.Image:
    """Return pictures in rows and columns, about as many of each.

    >>> grid(np.zeros((4, 40, 40), np.uint8)).size
    (86, 86)
    """
    if images.dtype != np.uint8:
        images = np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8)
    factor = math.ceil(LEAST_SIDE / max(images.shape[1:3]))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    height, width = images.shape[1] + GAP, images.shape[2] + GAP
    sheet = np.full((rows * height + GAP, columns * width + GAP, *images.shape[3:]), GROUND)
    for number, image in enumerate(images):
        top, left = GAP + number // columns * height, GAP + number % columns * width
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return Image.fromarray(sheet.astype(np.uint8))


def draw_losses(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw each stage's losses by epoch, and beside them what else was measured, as a PNG.

    Stages measure the same, but on scales of their own. So each has its own panels, in a row of
    its own if it has several. Bands are 95 % intervals.
    """
    from matplotlib.figure import Figure

    stages = list(dict.fromkeys(record["stage"] for record in records))
    keys = ["loss", *measured(records)]
    columns, rows = arrangement(len(stages), len(keys))
    size = (WIDTH * columns, HEIGHT * rows)
    figure = Figure(figsize=size, dpi=DOTS, facecolor="white", layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels[len(stages) * len(keys) :]:
        panel.set_visible(False)
    places = [(stage, key) for stage in stages for key in keys]
    for panel, (stage, key) in zip(panels, places, strict=False):
        own = [record for record in records if record["stage"] == stage]
        what = draw_loss(panel, own) if key == "loss" else draw_measure(panel, own, key)
        named = len(stages) > 1 or key == "loss"
        dress(panel, f"{stage}: {what}" if named else what)
    figure.savefig(path, format="png")


def arrangement(stages: int, panels: int) -> tuple[int, int]:
    """Return in how many columns and rows the panels of stages are arranged.

    Args:
        stages: how many.
        panels: of each.

    >>> arrangement(1, 5), arrangement(3, 2), arrangement(9, 1), arrangement(2, 5)
    ((4, 2), (2, 3), (4, 3), (5, 2))
    """
    row_each = stages > 1 and panels > 1
    columns = panels if row_each else min(ABREAST, stages * panels)
    return columns, math.ceil(stages * panels / columns)


def draw_loss(panel: Any, records: Sequence[Mapping[str, Any]]) -> str:
    """Draw a stage's losses, as far as there are any; return what is drawn, in words."""
    own = draw_line(panel, records, "loss", OWN, "trained on")
    theirs = draw_line(panel, records, "held_out", THEIRS, "held out")
    if own and theirs:
        panel.legend(frameon=False, labelcolor=FAINT)
    return "held out" if theirs and not own else "loss"


def draw_measure(panel: Any, records: Sequence[Mapping[str, Any]], key: str) -> str:
    """Draw a measure, with a band if there are intervals; return what is drawn, in words."""
    low, high = f"{key}_low", f"{key}_high"
    limits = [(r["epoch"], r[low], r[high]) for r in records if low in r and high in r]
    draw_line(panel, records, key, OTHER)
    name = key.replace("_", " ")
    if not limits:
        return name
    edge = 2 if len(limits) < 2 else 0  # of one epoch nothing else could be seen
    panel.fill_between(*zip(*limits, strict=True), color=OTHER, alpha=0.2, lw=edge)
    return f"{name}, with 95 % interval"


def draw_line(
    panel: Any, records: Sequence[Mapping[str, Any]], key: str, color: str, name: str | None = None
) -> bool:
    """Draw one measure by epoch, where it was taken; say whether it ever was."""
    found = [(r["epoch"], r[key]) for r in records if r.get(key) is not None]
    if found:
        mark = "o-" if len(found) < 2 else "-"
        panel.plot(*zip(*found, strict=True), mark, color=color, lw=2, label=name)
    return bool(found)


def dress(panel: Any, title: str) -> None:
    """Give a panel its title, a quiet grid, and an axis of whole epochs."""
    from matplotlib.ticker import MaxNLocator

    panel.set_title(title, size=11, loc="left", color=INK)
    panel.set_xlabel("epoch", color=FAINT)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    panel.grid(axis="y", color="#E6E6E6", lw=0.8)
    panel.tick_params(length=0, colors=FAINT)
    for side in panel.spines.values():
        side.set_visible(False)
