"""Ordinary JPEGs by libjpeg-turbo, in full or straight at a half, a quarter or an eighth of a size.

At a reduced scale the inverse DCT makes fewer pixels of each block of 8 x 8, and most of the work
on pixels is never done; what remains is undoing the entropy code. Other eighths are left out:
libjpeg-turbo has no vector code for them, and they are slower than the full size. At the full size
the pixels are those that Pillow decodes, bit for bit.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
from PIL import Image

MARGIN = 1.15
"""How many times the pixels wanted the reduced scale must leave, on each side.

The more, the nearer to the exact pixels and the slower; benchmarks/decoding_agreement.py and
benchmarks/decoding.py tell what this one costs and gains.
"""

SCALES = (8, 4, 2)


def is_ordinary(image: Image.Image) -> bool:
    """Say whether an opened image file is a gray or color JPEG of 8 bits, which most photos are.

    CMYK, and whatever is odd in another way, is Pillow's to decode.
    """
    return image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")


def reduction(size: tuple[int, int], wanted: tuple[float, float]) -> int:
    """Return 8, 4 or 2, by which a JPEG can be reduced and still leave enough pixels, or else 1.

    Args:
        size: width and height of what is shown of it.
        wanted: the width and height that this will be resized to.

    >>> [reduction((side, side), (256, 256)) for side in (500, 512, 1023, 4000)]
    [1, 1, 2, 8]
    """
    room = min(size[0] / wanted[0], size[1] / wanted[1]) / MARGIN
    return next((scale for scale in SCALES if scale <= room), 1)


def decode_jpeg(data: bytes, image: Image.Image, reduced: int) -> np.ndarray | None:
    """Return the pixels of an ordinary JPEG as they are stored: not turned upright.

    Args:
        data: its bytes.
        image: the same, opened.
        reduced: 1, 2, 4 or 8, by which its sides are divided and rounded up.

    Returns:
        uint8 [H, W, C] with C = 1 for gray and 3 for color; None where anything at all is wrong
        with the file, be it only a warning: Pillow may know what to do, or what to say.
    """
    width, height = (-(-side // reduced) for side in image.size)
    color = "GRAY" if image.mode == "L" else "RGB"
    try:
        pixels = simplejpeg.decode_jpeg(data, color, min_height=height, min_width=width)
    except (ValueError, RuntimeError, MemoryError):
        return None
    found = pixels.shape[:2] == (height, width)
    return pixels if found else None
