"""Images that come as arrays: an .npz file, or straight from Python.

An array image is handed out as a PGM, PPM or TGA file, uncompressed, or as .npy where it has other
bands than those hold, so that everything downstream knows one thing only: bytes to decode. The same
pixels always give the same bytes.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from topwork.data.bands import write_bands
from topwork.data.image_set import ImageSet, Item, require_classes
from topwork.errors import DataError

# Images, their labels, and the side they are for, by the usual names (Keras, MedMNIST, plain).
_USUAL = (
    ("x_train", "y_train", "train"),
    ("x_val", "y_val", "val"),
    ("x_valid", "y_valid", "val"),
    ("x_test", "y_test", "test"),
    ("train_images", "train_labels", "train"),
    ("val_images", "val_labels", "val"),
    ("test_images", "test_labels", "test"),
    ("images", "labels", None),
)


class ArraySource:
    """Encodes images of arrays by names such as ``x_train[17]``."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = dict(arrays)

    def __call__(self, name: str) -> bytes:
        """Return one image as the bytes of an image file."""
        key, _, index = name.removesuffix("]").rpartition("[")
        return encode(self._arrays[key][int(index)])


def encode(pixels: np.ndarray) -> bytes:
    r"""Return an image as an uncompressed file: gray as PGM, RGB as PPM, RGBA as TGA, else .npy.

    16-bit values stay 16-bit, but for RGBA, which is rounded to 8.

    Args:
        pixels: uint8 or uint16, [H, W] or [H, W, C].

    >>> encode(np.array([[0, 1], [2, 3]], dtype=np.uint8))
    b'P5\n2 2\n255\n\x00\x01\x02\x03'
    """
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels not in (1, 3, 4):
        return write_bands(pixels)
    if channels == 4:
        eight_bit = np.rint(pixels / 257).astype(np.uint8) if pixels.itemsize == 2 else pixels
        # true color, 32 bits, 8 of them alpha, first row on top; blue comes first
        header = struct.pack("<2xB9xHHBB", 2, width, height, 32, 0x28)
        return header + eight_bit[:, :, [2, 1, 0, 3]].tobytes()
    magic = "P5" if channels == 1 else "P6"
    greatest = 255 if pixels.itemsize == 1 else 65535
    big_endian = pixels.astype(pixels.dtype.newbyteorder(">"), copy=False)
    return f"{magic}\n{width} {height}\n{greatest}\n".encode() + big_endian.tobytes()


def images_from_arrays(
    images: np.ndarray,
    labels: Sequence[str | int],
    *,
    split: Sequence[str | None] | None = None,
    group: Sequence[str | int | None] | None = None,
) -> ImageSet:
    """Return array images as an image set; their names are ``images[0]``, ``images[1]``, ...

    Args:
        images: uint8 or uint16, [N, H, W] or [N, H, W, C]; four channels are RGBA, unless the
            network takes four.
        labels: N class names or whole numbers.
        split: N times ``train``, ``val`` or ``test``; left out, a split will be made.
        group: N names of what must not be divided, such as a patient; None where there is none.

    Raises:
        DataError: a shape, type, length or side that does not fit.

    >>> images_from_arrays(np.zeros((2, 8, 8), np.uint8), ["a", "b"]).items[1]
    Item(name='images[1]', labels=('b',), split=None, group=None)
    """
    array = np.asarray(images)
    items = _items("arrays", "images", array, labels, split, group)
    return ImageSet("arrays", items, ArraySource({"images": array}))


def open_npz(path: Path, least_classes: int = 2) -> ImageSet:
    """Return the images of an .npz file with arrays of the usual names; so many classes needed.

    Raises:
        DataError: it is damaged, holds Python objects, or lacks arrays of known names.
    """
    arrays = _load(path)
    images: dict[str, np.ndarray] = {}
    items: list[Item] = []
    for image_key, label_key, side in _USUAL:
        if image_key not in arrays:
            continue
        if label_key not in arrays:
            raise DataError(f"{path}: has {image_key!r} but no {label_key!r}; add the labels")
        array = arrays[image_key]
        labels = arrays[label_key]
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1:
            raise DataError(
                f"{path}: {label_key!r} has shape {labels.shape}; give one label per image"
            )
        images[image_key] = array
        items += _items(str(path), image_key, array, labels.tolist(), [side] * len(labels), None)
    if not images:
        known = ", ".join(f"{image}/{label}" for image, label, _ in _USUAL)
        raise DataError(
            f"{path}: no arrays of known names; it has {', '.join(sorted(arrays)) or 'none'}; "
            f"name them as one of {known}"
        )
    return require_classes(ImageSet(str(path), tuple(items), ArraySource(images)), least_classes)


def _load(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of known names, and an empty placeholder for each other one."""
    wanted = {key for pair in _USUAL for key in pair[:2]}
    key = ""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {}
            for key in archive.files:
                arrays[key] = archive[key] if key in wanted else np.empty(0)
            return arrays
    except PermissionError as error:
        raise DataError(f"{path}: no permission to read it") from error
    except MemoryError as error:
        raise DataError(f"{path}: array {key!r} is too large for this machine's memory") from error
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, TypeError) as error:
        if "allow_pickle" in str(error) and key:
            raise DataError(
                f"{path}: array {key!r} holds Python objects (pickle), which can run code when "
                f"opened and is refused; save it as plain numbers or strings"
            ) from error
        raise DataError(
            f"{path}: not an .npz file, or damaged; save or download it again"
        ) from error


def _items(
    location: str,
    key: str,
    images: np.ndarray,
    labels: Sequence[str | int],
    split: Sequence[str | None] | None,
    group: Sequence[str | int | None] | None,
) -> tuple[Item, ...]:
    channels_first = images.ndim == 4 and images.shape[1] <= 4 < images.shape[3]
    if images.ndim not in (3, 4) or 0 in images.shape[1:] or channels_first:
        raise DataError(
            f"{location}: {key!r} has shape {images.shape}; give [N, H, W] or [N, H, W, channels]"
        )
    if images.dtype.newbyteorder("=") not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise DataError(f"{location}: {key!r} is {images.dtype}; give uint8 or uint16")
    count = len(images)
    for what, values in (("labels", labels), ("split", split), ("group", group)):
        if values is not None and len(values) != count:
            raise DataError(f"{location}: {count} images in {key!r} but {len(values)} {what}")
    sides = split if split is not None else [None] * count
    for side in sides:
        if side not in ("train", "val", "test", None):
            raise DataError(f"{location}: unknown side {side!r}; give train, val or test")
    groups = group if group is not None else [None] * count
    return tuple(
        Item(f"{key}[{index}]", (_class_name(location, label),), side, _optional(member))
        for index, (label, side, member) in enumerate(zip(labels, sides, groups, strict=True))
    )


def _optional(value: str | int | None) -> str | None:
    return None if value is None else str(value)


def _class_name(location: str, label: object) -> str:
    """Return a class name for a label of a list or of an array."""
    if isinstance(label, bytes | np.bytes_):
        return label.decode("utf-8", "replace")
    if isinstance(label, str):
        return str(label)
    if isinstance(label, int | np.integer | float | np.floating) and float(label).is_integer():
        return str(int(label))
    raise DataError(f"{location}: label {label!r} is neither a name nor a whole number")
