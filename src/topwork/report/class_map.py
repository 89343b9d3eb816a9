"""Pictures of class maps: where in a photo a model sees which class, drawn over the photo."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from topwork.data.decode import decode
from topwork.data.image_set import ImageSet
from topwork.errors import UsageError
from topwork.network.convolutional import SlidingNetwork
from topwork.network.predictor import Predictor
from topwork.network.sliding import ClassMap, class_map, slide

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

PANELS = 3  # classes shown at most
AREA, GAP, TOP, BOTTOM, RIGHT, DOTS = 13.0, 0.12, 0.34, 0.28, 0.75, 110  # inches, dots per inch
OPACITY = 0.6  # of the layer where a class is certain
INK, FAINT = "#222222", "#666666"


@dataclass(frozen=True)
class MapFolder:
    """A folder that class maps are drawn into; made by `open_map_folder`."""

    predictor: Predictor
    sliding: SlidingNetwork
    folder: Path

    def draw(self, images: ImageSet, index: int) -> Path:
        """Draw the map of one image of a set; return the file written.

        Raises:
            ImageError: if the image cannot be read, or is too long for its width.
        """
        name, channels = images.items[index].name, self.predictor.opened.preprocessing.channels
        picture = decode(images.read(index), name, channels)
        found = class_map(self.predictor, self.sliding, picture, name)
        return write_class_map(found, name, self.folder)


def open_map_folder(predictor: Predictor, folder: Path) -> MapFolder:
    """Make a folder for class maps, where there is none, and the model ready to be slid.

    Raises:
        UnsupportedError: if the model cannot be slid.
        UsageError: if it predicts no classes, or the folder cannot be made.
    """
    sliding = slide(predictor)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--map {folder} cannot be made: {(error.strerror or str(error)).lower()};"
            " choose another folder"
        ) from error
    return MapFolder(predictor, sliding, folder)


def write_class_map(found: ClassMap, name: str, folder: Path) -> Path:
    """Draw a class map into a folder as STEM.png; return its path.

    Where there is such a file, whatever it is, it stays, and the new one gets a number.
    """
    drawn = draw_class_map(found, Path(name).name)
    stem, number = Path(name).stem, 1
    while True:
        path = folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
        try:
            with path.open("xb") as opened:
                opened.write(drawn)
        except FileExistsError:
            number += 1
        else:
            return path


def draw_class_map(found: ClassMap, name: str) -> bytes:
    """Draw a photo, and beside it each class that wins somewhere, as a translucent layer on it.

    At most three classes are shown, those that win most windows. The layer's color tells the
    class's probability, a line where it crosses one half.

    Args:
        found: the map.
        name: the photo's name, written above it.

    Returns:
        a PNG file's bytes.
    """
    from matplotlib.figure import Figure

    shown = found.winners()[:PANELS]
    pixels = found.photo.shape[0] * found.photo.shape[1]
    height, width = (math.sqrt(AREA / pixels) * side for side in found.photo.shape[:2])
    size = (len(shown) + 1) * (width + GAP) + RIGHT, height + TOP + BOTTOM
    figure = Figure(figsize=size, dpi=DOTS, facecolor="white")
    places = [GAP + number * (width + GAP) for number in range(len(shown) + 1)]
    panels = [add_axes(figure, left, BOTTOM, width, height) for left in places]
    picture, layer = displayable(found.photo), layer_colors()

    panels[0].imshow(picture)
    title(panels[0], name, width, color=FAINT)
    windows = "x".join(map(str, found.window))
    caption(panels[0], f"{picture.shape[0]}x{picture.shape[1]} pixels, windows of {windows}")
    best = found.probabilities.argmax(2)
    for panel, number in zip(panels[1:], shown, strict=True):
        panel.imshow(picture.mean(2), cmap="gray", vmin=-60, vmax=255)  # lighter than it is
        values = found.over_pixels(number)
        panel.imshow(values, cmap=layer, vmin=0, vmax=1)
        if values.min() < 0.5 < values.max():
            panel.contour(values, levels=[0.5], colors="white", linewidths=1)
        title(panel, found.labels[number], width, weight="bold")
        caption(panel, f"most probable in {(best == number).mean():.0%} of the windows")
    draw_bar(figure, places[-1] + width + GAP, height, layer)

    drawn = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # names in scripts that no font has
        figure.savefig(drawn, format="png")
    return drawn.getvalue()


def add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes without a frame, placed in inches."""
    across, up = figure.get_size_inches()
    axes = figure.add_axes((left / across, bottom / up, width / across, height / up))
    axes.set_axis_off()
    return axes


def title(panel: Axes, text: str, width: float, **style: Any) -> None:
    """Write a name above a panel, shortened to its width in inches; dollars are no formula."""
    room = max(8, int(11 * width))
    text = text if len(text) <= room else f"{text[: room - 1]}…"
    style = {"color": INK, "size": 11, **style}
    panel.set_title(text, loc="left", pad=5, parse_math=False, **style)


def caption(panel: Axes, text: str) -> None:
    """Write a remark below a panel."""
    style: dict[str, Any] = {"size": 8, "color": FAINT, "va": "top"}
    panel.annotate(text, (0, 0), (0, -5), "axes fraction", "offset points", **style)


def layer_colors() -> Colormap:
    """Return a scale from transparent over yellow to a red that lets the photo show through."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    colors = colormaps["YlOrRd"](np.linspace(0, 0.75, 256))
    colors[:, 3] = OPACITY * np.linspace(0, 1, 256)
    return ListedColormap(colors)


def draw_bar(figure: Figure, left: float, height: float, layer: Colormap) -> None:
    """Draw the scale of the layer."""
    from matplotlib.cm import ScalarMappable

    axes = add_axes(figure, left, BOTTOM, 0.13, height)
    axes.set_axis_on()
    bar = figure.colorbar(ScalarMappable(cmap=layer), cax=axes, ticks=[0, 0.5, 1])
    bar.ax.axhline(0.5, color="white", linewidth=1)
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=FAINT)
    bar.outline.set_visible(False)
    bar.set_label("probability", size=8, color=FAINT, labelpad=2)


def displayable(photo: np.ndarray) -> np.ndarray:
    """Return a photo of any number of channels as uint8 [H, W, 3].

    >>> displayable(np.full((1, 1, 5), 65535, np.uint16)).tolist()
    [[[255, 255, 255]]]
    """
    shown = photo[:, :, :3] if photo.shape[2] >= 3 else photo[:, :, :1].repeat(3, axis=2)
    if shown.dtype == np.uint8:
        return shown
    return (shown * (255 / np.iinfo(shown.dtype).max)).astype(np.uint8)
