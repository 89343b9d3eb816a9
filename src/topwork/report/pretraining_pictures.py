"""Pictures of a pretraining: its losses by epoch, and what it made to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from topwork.report.pictures import FAINT, INK

GAP = 2  # pixels between the pictures of a grid
LEAST_SIDE = 40  # smaller pictures are enlarged, pixel by pixel
GROUND = 255
OWN, THEIRS = "#0072B2", "#D55E00"  # Okabe and Ito's blue and vermilion
WIDTH, HEIGHT, DOTS = 4.2, 3.2, 100  # inches, inches, pixels to the inch; of each panel
NOT_CURVES = ("stage", "epoch", "epochs", "seconds", "loss", "held_out")


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
    """Draw each stage's losses by epoch, and beside them what else was measured, as a PNG."""
    from matplotlib.figure import Figure

    stages = list(dict.fromkeys(record["stage"] for record in records))
    measured = list(dict.fromkeys(k for record in records for k in record if k not in NOT_CURVES))
    titles = [*stages, *measured]
    columns = min(4, len(titles))
    rows = math.ceil(len(titles) / columns)
    size = (WIDTH * columns, HEIGHT * rows)
    figure = Figure(figsize=size, dpi=DOTS, facecolor="white", layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, title in zip(panels, titles, strict=False):
        panel.set_title(title.replace("_", " "), size=11, loc="left", color=INK)
        panel.set_xlabel("epoch", color=FAINT)
        panel.grid(axis="y", color="#E6E6E6", lw=0.8)
        panel.tick_params(length=0, colors=FAINT)
        for side in panel.spines.values():
            side.set_visible(False)
    for panel, stage in zip(panels, stages, strict=False):
        own = [record for record in records if record["stage"] == stage]
        for key, color, name in (("loss", OWN, "trained on"), ("held_out", THEIRS, "held out")):
            line(panel, own, key, color, name)
        panel.legend(frameon=False, labelcolor=FAINT)
    for panel, name in zip(panels[len(stages) :], measured, strict=False):
        for number, stage in enumerate(stages):
            own = [record for record in records if record["stage"] == stage]
            label = stage if len(stages) > 1 else ""
            line(
                panel, own, name, (OWN, THEIRS, "#009E73", "#CC79A7", "#56B4E9")[number % 5], label
            )
        if len(stages) > 1:
            panel.legend(frameon=False, labelcolor=FAINT)
    for panel in panels[len(titles) :]:
        panel.set_visible(False)
    figure.savefig(path, format="png")


def line(panel: Any, records: Sequence[Mapping[str, Any]], key: str, color: str, name: str) -> None:
    """Draw one measure by epoch, where it was taken."""
    found = [(r["epoch"], r[key]) for r in records if r.get(key) is not None]
    if found:
        mark = "o-" if len(found) < 2 else "-"
        panel.plot(*zip(*found, strict=True), mark, color=color, lw=2, label=name or None)
