"""Images of any number of bands, as bytes: NumPy's own .npy format, with nothing but numbers in it.

Image files hold one, three or four bands. For others the pixels travel as [H, W, C] in an .npy.
"""

from __future__ import annotations

import io

import numpy as np

MAGIC = b"\x93NUMPY"


def write_bands(pixels: np.ndarray) -> bytes:
    """Return pixels as the bytes of an .npy file; the same pixels always give the same bytes.

    Args:
        pixels: uint8 or uint16 [H, W, C].
    """
    file = io.BytesIO()
    little_endian = pixels.astype(pixels.dtype.newbyteorder("<"), order="C")
    np.lib.format.write_array(file, little_endian, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def is_bands(data: bytes) -> bool:
    """Say whether these are the bytes of an .npy file."""
    return data.startswith(MAGIC)


def read_bands(data: bytes) -> np.ndarray:
    """Return the pixels of an .npy file as uint8 [H, W, C]; 16-bit values are divided by 257.

    Raises:
        ValueError: if it is damaged, or no such image.

    >>> read_bands(write_bands(np.array([[[0, 65535]]], dtype=np.uint16))).tolist()
    [[[0, 255]]]
    """
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("another version of .npy")
    shape, by_columns, kind = np.lib.format.read_array_header_1_0(file)
    if kind.newbyteorder("=") not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise ValueError(f"{kind}, not uint8 or uint16")
    if len(shape) != 3 or 0 in shape or by_columns:
        raise ValueError(f"shape {shape}, not [H, W, C]")
    if len(data) - file.tell() != kind.itemsize * int(np.prod(shape, dtype=object)):
        raise ValueError("truncated")
    pixels = np.frombuffer(data, kind, offset=file.tell()).reshape(shape)
    return pixels if kind.itemsize == 1 else np.rint(pixels / 257).astype(np.uint8)
