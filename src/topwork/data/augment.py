"""Augmented views of an image: random resized crops and flips, the same in every run.

A view is a function of the image's bytes, its number and the recipe: not of the order in which
images come, of threads, or of any generator's state. So views can be cached, and drawn again.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from topwork.data.decode import Picture
from topwork.data.views import RESAMPLING, Preprocessing, by_band, render, size_of
from topwork.plan import Augment

VERSION = 1
"""Of how views are drawn; raise it when the same numbers would give other pixels."""

ASPECTS = (3 / 4, 4 / 3)
TRIES = 10


@dataclass(frozen=True)
class View:
    """Which rendering of an image.

    Attributes:
        number: 0 for the plain one; 1 and more are drawn at random, each its own way.
        augment: how they are drawn.
    """

    number: int = 0
    augment: Augment = field(default=Augment())

    def facts(self) -> str | dict[str, Any]:
        """Return what identifies it in the cache, as plain data.

        >>> View().facts(), View(3).facts()
        ('plain', {'version': 1, 'number': 3, 'least_area': 0.5, 'flip': True})
        """
        if self.number == 0:
            return "plain"
        return {
            "version": VERSION,
            "number": self.number,
            "least_area": float(self.augment.least_area),
            "flip": self.augment.flip,
        }


PLAIN = View()


class Crop(NamedTuple):
    """A rectangle of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int


def render_view(
    picture: Picture, preprocessing: Preprocessing, view: View, digest: str
) -> np.ndarray:
    """Return a view of a picture as uint8 [H, W, C], writable.

    An augmented one shows a part of the whole picture, resized without regard to its aspect ratio
    (the preprocessing's own crop is not applied), and half of them are mirrored if the recipe says
    so.

    Args:
        picture: what decoding gave.
        preprocessing: the size and the interpolation.
        view: which rendering.
        digest: the SHA-256 of the image's bytes, in hexadecimal.
    """
    if view.number == 0:
        return render(picture, preprocessing)
    crop, flipped = draw(size_of(picture), view, digest)
    height, width = preprocessing.size
    resampling = RESAMPLING[preprocessing.interpolation]
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    pixels = by_band(picture, lambda part: part.resize((width, height), resampling, box=box))
    return np.ascontiguousarray(pixels[:, ::-1]) if flipped else pixels


def draw(size: tuple[int, int], view: View, digest: str) -> tuple[Crop, bool]:
    """Draw what a view shows of an image, and whether it is mirrored.

    Args:
        size: width and height in pixels.
        view: an augmented one.
        digest: the SHA-256 of the image's bytes, in hexadecimal.
    """
    numbers = random_numbers(view, digest, 1 + 4 * TRIES)
    crop = random_crop(size, view.augment.least_area, numbers[1:].reshape(TRIES, 4))
    return crop, view.augment.flip and bool(numbers[0] < 0.5)


def random_crop(size: tuple[int, int], least_area: float, numbers: np.ndarray) -> Crop:
    """Return a part of an image, by the rules of torchvision's ``RandomResizedCrop``.

    The share of the area is uniform from ``least_area`` to 1, the aspect ratio log-uniform from 3/4
    to 4/3, the place uniform. What does not fit is drawn again; after the last try it is the
    largest part at the center with an aspect ratio in that range.

    Args:
        size: width and height in pixels.
        least_area: a share above 0, up to 1.
        numbers: in [0, 1), four for each try: area, aspect ratio, left, top.
    """
    whole_width, whole_height = size
    lowest, highest = (math.log(aspect) for aspect in ASPECTS)
    for area, aspect, left, top in numbers.tolist():
        pixels = whole_width * whole_height * (least_area + (1 - least_area) * area)
        ratio = math.exp(lowest + (highest - lowest) * aspect)
        width, height = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < width <= whole_width and 0 < height <= whole_height:
            return Crop(
                int(left * (whole_width - width + 1)),
                int(top * (whole_height - height + 1)),
                width,
                height,
            )
    width = max(1, min(whole_width, round(whole_height * ASPECTS[1])))
    height = max(1, min(whole_height, round(whole_width / ASPECTS[0])))
    return Crop((whole_width - width) // 2, (whole_height - height) // 2, width, height)


def random_numbers(view: View, digest: str, count: int) -> np.ndarray:
    """Return numbers in [0, 1) that belong to a view of an image, float64 [count].

    They are taken from the bits of a counter-based generator (Philox, Salmon et al. 2011), which
    NumPy keeps the same in all its versions, as it does not keep its distributions.
    """
    text = json.dumps([digest, view.facts()], sort_keys=True)
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    return (np.random.Philox(key=key).random_raw(count) >> 11) * 2.0**-53
