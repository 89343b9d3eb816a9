"""What scikit-learn calls X, as an image set: paths, images, arrays, or rows of numbers.

Rows of numbers are a convenience: scikit-learn's own checks and toy data come as [n, d]. Each row
is taken as a flattened square gray image, its side the least that holds d numbers, what is left
over black. The range of all numbers seen in fit becomes 0 to 255, what lies outside is clipped;
uint8 stays as it is. That suits flattened pixels (784 numbers are 28 x 28); for other tables a
network of images is the wrong tool.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.utils.validation import validate_data

from topwork.data.arrays import encode
from topwork.data.audit import Audit
from topwork.data.decode import decode, quiet, reasons, upright_picture
from topwork.data.folders import read_file
from topwork.data.image_set import ImageSet, Item
from topwork.data.loading import map_ahead
from topwork.data.split import Split
from topwork.data.views import by_band
from topwork.errors import DataError, ImageError, UsageError
from topwork.network.predictor import checked

Given = str | Path | Image.Image | np.ndarray
Range = tuple[float, float]

FILES = (str, Path)


def image_set(estimator: Any, X: Any, *, reset: bool, channels: int = 3) -> ImageSet:
    """Return X as unlabeled images, one item for each of its rows, without reading any.

    As `sklearn.utils.validation.validate_data` does, it remembers in ``fit`` what X was like, and
    holds later ones against that: ``range_`` is the range of its numbers, or None for images.

    Args:
        estimator: the one that is fitted, or used.
        X: a sequence of paths, of Pillow images, or of arrays, uint8 or uint16, [H, W] or
            [H, W, C]; or numbers [n, d].
        reset: whether this is fit.
        channels: of the network's images.

    Raises:
        ValueError: for numbers that scikit-learn would not take.
        UsageError: for a single image, or where fit saw images and X has numbers, or the reverse.
    """
    given = single_images(X)
    if given is None:
        numbers = validate_data(estimator, X, reset=reset)
        if reset:
            estimator.range_ = range_of(numbers)
        elif estimator.range_ is None:
            raise UsageError("X holds numbers, but fit saw images; give images, or fit again")
        given = list(as_pixels(numbers, estimator.range_))
    elif reset:
        estimator.range_ = None
        for name in ("n_features_in_", "feature_names_in_"):
            vars(estimator).pop(name, None)
    elif estimator.range_ is not None:
        raise UsageError("X holds images, but fit saw numbers; give numbers, or fit again")
    names = [
        str(image) if isinstance(image, FILES) else f"X[{row}]" for row, image in enumerate(given)
    ]
    items = tuple(Item(name) for name in names)
    return ImageSet("X", items, Source(dict(zip(names, given, strict=True)), channels))


def single_images(X: Any) -> list[Given] | None:
    """Return the images that X holds; None if it holds numbers, or nothing that is known.

    >>> single_images(["a.png", "b.png"]), single_images([[0.0, 1.0]])
    (['a.png', 'b.png'], None)

    Raises:
        UsageError: if it is a single image.
    """
    if isinstance(X, (*FILES, Image.Image)):
        raise UsageError(f"X is a single image; give a list of images, such as [{X!r}]")
    dimensions = getattr(X, "ndim", 1)  # of a list: its elements tell
    if isinstance(X, np.ndarray) and dimensions > 2:
        if X.ndim == 3 and X.shape[2] in (3, 4):  # no gray image is so narrow
            raise UsageError("X is a single image with its colors; give a list of images, as [X]")
        return list(X)
    if dimensions != 1 or not isinstance(X, Iterable):
        return None
    given = list(X)
    first = given[0] if given else None
    is_array = isinstance(first, np.ndarray) and first.ndim > 1
    return given if is_array or isinstance(first, (*FILES, Image.Image)) else None


class Source:
    """Encodes images in memory by names such as ``X[17]``, and reads files by their own."""

    def __init__(self, given: Mapping[str, Given], channels: int) -> None:
        self._given = dict(given)
        self._channels = channels

    def __call__(self, name: str) -> bytes:
        """Return one image as the bytes of an image file."""
        image = self._given[name]
        if isinstance(image, FILES):
            return read_file("", str(image))
        if isinstance(image, np.ndarray):
            return encode(checked(image))
        if isinstance(image, Image.Image):
            with reasons(name):  # Pillow reads the pixels of a file that it opened only now
                picture = upright_picture(image, name, self._channels)
            return encode(by_band(picture, lambda band: band))
        raise ImageError(name, f"is a {type(image).__name__}; give paths, images or arrays")

    @property
    def all_files(self) -> bool:
        """Whether nothing lies in memory."""
        return all(isinstance(image, FILES) for image in self._given.values())


def range_of(numbers: np.ndarray) -> Range:
    """Return the numbers that become black and white: 0 and 255 for uint8, else the extremes."""
    if numbers.dtype == np.uint8:
        return 0.0, 255.0
    return float(numbers.min()), float(numbers.max())


def as_pixels(numbers: np.ndarray, known: Range) -> np.ndarray:
    """Return rows of numbers as gray images, uint8 [n, side, side].

    Args:
        numbers: [n, d].
        known: what becomes 0 and 255.

    >>> as_pixels(np.array([[0.0, 0.5, 1.5]]), (0.0, 1.0)).tolist()
    [[[0, 128], [255, 0]]]
    """
    low, high = known
    count, width = numbers.shape
    side = math.isqrt(width - 1) + 1
    shares = (numbers.astype(np.float64) - low) / ((high - low) or 1.0)
    pixels = np.zeros((count, side * side), np.uint8)
    pixels[:, :width] = np.rint(shares.clip(0, 1) * 255)
    return pixels.reshape(count, side, side)


def digests_of(images: ImageSet) -> tuple[list[str | None], dict[int, str]]:
    """Return the SHA-256 of each image's bytes, None where it cannot be read, and why not."""

    def look(index: int) -> str | ImageError:
        try:
            return hashlib.sha256(images.read(index)).hexdigest()
        except ImageError as error:
            return error

    indices = range(len(images))
    with quiet():
        if isinstance(images.source, Source) and images.source.all_files:
            found = [digest for _, digest in map_ahead(indices, look)]
        else:  # Pillow loads an image when it is first used, which two threads must not do at once
            found = [look(index) for index in indices]
    failed = {i: each.reason for i, each in enumerate(found) if isinstance(each, ImageError)}
    return [None if isinstance(each, ImageError) else each for each in found], failed


def require_all(images: ImageSet, failed: Mapping[int, str]) -> None:
    """Refuse images of which some cannot be read: every row of X must have its answer.

    Args:
        images: X.
        failed: rows that cannot be read, with the reason.

    Raises:
        ImageError: naming the first.
    """
    if failed:
        first = min(failed)
        count = f"({len(failed)} of {len(images)} images of X cannot be used)"
        raise ImageError(
            images.items[first].name, f"{failed[first]}; mend it, or leave it out of X {count}"
        )


def require_classes(
    images: ImageSet, labels: np.ndarray, failed: Mapping[int, str], channels: int
) -> None:
    """Refuse images of which those of some class are all unreadable: it could not be learned.

    Of each class, images are decoded until one can be.

    Args:
        images: X.
        labels: [n], y.
        failed: rows whose bytes cannot be read, with the reason.
        channels: of the network's images.

    Raises:
        ImageError: naming the first image, if none of X can be read.
        DataError: naming a class.
    """
    lacking: dict[Any, dict[int, str]] = {}
    with quiet():
        for label in np.unique(labels):
            reasons: dict[int, str] = {}
            for row in np.flatnonzero(labels == label).tolist():
                reason = failed.get(row) or why_not_decoded(images, row, channels)
                if not reason:
                    break
                reasons[row] = reason
            else:
                lacking[label] = reasons
    unreadable = {row: reason for reasons in lacking.values() for row, reason in reasons.items()}
    if len(unreadable) == len(images):
        require_all(images, unreadable)
    if lacking:
        label, reasons = next(iter(lacking.items()))
        row, reason = next(iter(reasons.items()))
        raise DataError(
            f"{images.items[row].name}: {reason}; no image of class {str(label)!r} can be read"
            f" ({len(reasons)} tried); mend them, or leave the class out of X and y"
        )


def why_not_decoded(images: ImageSet, row: int, channels: int) -> str:
    """Return why an image cannot be decoded; "" if it can."""
    try:
        decode(images.read(row), images.items[row].name, channels)
    except ImageError as error:
        return error.reason
    return ""


def all_training(images: ImageSet, digests: Sequence[str | None]) -> Audit:
    """Return what an audit would, of images that are all for training: X in fit is no test part."""
    train = tuple(index for index, digest in enumerate(digests) if digest)
    return Audit(
        location=images.location,
        digests=tuple(digests),
        split=Split(train, (), (), "given"),
        skipped=(),
        unreadable=(),
        exact_duplicates=(),
        near_duplicates=(),
        dropped={},
        lookalikes=(),
        crowds=(),
        copies=0,
        conflicts=(),
        counts={},
        missing={},
        tiny=(),
        imbalance=1.0,
    )
