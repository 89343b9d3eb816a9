"""The eight ways in which a camera may have stored a picture (the orientation tag of EXIF).

From the stored picture to the upright one: 5 to 8 exchange rows and columns, then 2, 3, 6 and 7
exchange left and right, and 3, 4, 7 and 8 exchange top and bottom. Other numbers mean upright.
"""

from __future__ import annotations

import numpy as np

from topwork.data.augment import Crop

_TRANSPOSED = (5, 6, 7, 8)
_MIRRORED = (2, 3, 6, 7)
_UPSIDE_DOWN = (3, 4, 7, 8)


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return the width and height of a picture once it is upright; its own inverse.

    >>> upright_size((640, 480), 3), upright_size((640, 480), 6)
    ((640, 480), (480, 640))
    """
    return (size[1], size[0]) if orientation in _TRANSPOSED else size


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return stored pixels [H, W, C] turned upright, in the same memory.

    >>> upright(np.array([[[1], [2], [3]]]), 6)[:, :, 0].tolist()
    [[1], [2], [3]]
    """
    if orientation in _TRANSPOSED:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in _MIRRORED:
        pixels = pixels[:, ::-1]
    if orientation in _UPSIDE_DOWN:
        pixels = pixels[::-1]
    return pixels


def as_stored(part: Crop, size: tuple[int, int], orientation: int) -> Crop:
    """Return where a part of the upright picture lies in the stored one.

    Args:
        part: in the pixels of the upright picture.
        size: width and height of the upright picture.
        orientation: by EXIF.

    >>> as_stored(Crop(left=10, top=0, width=2, height=5), (100, 50), 6)
    Crop(left=0, top=88, width=5, height=2)
    """
    left, top, width, height = part
    if orientation in _MIRRORED:
        left = size[0] - left - width
    if orientation in _UPSIDE_DOWN:
        top = size[1] - top - height
    if orientation in _TRANSPOSED:
        return Crop(top, left, height, width)
    return Crop(left, top, width, height)
