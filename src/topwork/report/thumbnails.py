"""Small pictures of what a network sees, as text that a page can hold."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from topwork.data.augment import View
from topwork.data.decode import quiet
from topwork.data.image_set import ImageSet
from topwork.data.loading import map_ahead, read_view
from topwork.data.views import Preprocessing
from topwork.errors import ImageError
from topwork.network.device import one_core_a_thread
from topwork.report.class_map import displayable

SIDE = 160  # pixels; larger views are made smaller
TINY = 64  # pixels; where views are shown larger than they are, so are the flaws of JPEG


def thumbnails(
    images: ImageSet,
    wanted: Sequence[tuple[int, View]],
    digests: Sequence[str | None],
    preprocessing: Preprocessing,
    decoding: str,
) -> list[str | None]:
    """Render views of images and make them small.

    Args:
        images: where they come from.
        wanted: which image, and which view of it.
        digests: the SHA-256 that the bytes of each image of the set must have.
        preprocessing: how the network sees them.
        decoding: "fast" or "exact", see `topwork.data.rendering`.

    Returns:
        for each a JPEG of at most 160 pixels a side in base64; None where it cannot be read.
    """

    def work(key: tuple[int, View]) -> str | None:
        index, view = key
        pixels = read_view(images, index, digests[index], preprocessing, view, decoding)
        return None if isinstance(pixels, ImageError) else thumbnail(pixels)

    with quiet(), one_core_a_thread():
        return [made for _, made in map_ahead(wanted, work)]


def thumbnail(pixels: np.ndarray) -> str:
    """Return a view [H, W, C] as a JPEG of at most 160 pixels a side, in base64.

    >>> thumbnail(np.zeros((4, 6, 3), np.uint8))[:5]
    '/9j/4'
    """
    picture = Image.fromarray(displayable(pixels))
    quality = 80 if max(picture.size) > TINY else 95
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    encoded = io.BytesIO()
    picture.save(encoded, format="JPEG", quality=quality)
    return base64.b64encode(encoded.getvalue()).decode("ascii")
