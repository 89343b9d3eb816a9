"""From the bytes of an image file to an upright 8-bit picture, or to a short reason why not.

A picture is RGB as a rule. For networks of other images it is gray, or bands of any number.

The rules, one per kind of image; `DECODING` carries their version into cache keys:

- The first frame of an animation or of a file with several pages is the image.
- The EXIF orientation is applied; a damaged EXIF block is ignored.
- Transparent pixels (alpha channel, transparent palette entry or color) are laid on white.
- 16-bit gray is divided by 257, so 65535 becomes 255: nothing is clipped, nothing is stretched
  (what a camera of 12 bits stored in 16 stays dark). 16-bit color keeps its high byte.
  Integers of 32 bits and floats are read as 0..1 (floats only), 0..255 or 0..65535, the first
  range that holds all values; if none does, their own range is stretched to 0..255.
- CMYK goes to RGB by the plain formula, Adobe's inverted values respected; LAB by its definition.
- Color profiles (ICC) are not applied: the networks were trained on the pixels as they are stored.
- More than 178,956,970 pixels (twice Pillow's own warning limit) is refused from the header.
- Gray is the luminance of the RGB picture (ITU-R 601-2, as Pillow's "L"). Bands of any other number
  are those of the file as they are stored, alpha among them; the file must have just as many.

Any thread may decode. What Pillow and its C libraries print is held back by `quiet`, once
around a whole pass, because Python's warning filters belong to the process and not to a thread.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import overload

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError, features
from PIL.Image import Transpose

from topwork.data.bands import is_bands, read_bands
from topwork.errors import ImageError

Picture = Image.Image | tuple[Image.Image, ...]
"""What decoding gives: mode "L" for 1 channel, "RGB" for 3, else an "L" image for each band."""

DECODING: dict[str, str] = {
    "library": "pillow",
    "version": PIL.__version__,
    "jpeg": str(features.version_feature("libjpeg_turbo")),
    "rules": "1",
}

MAX_PIXELS = 178_956_970

# Raster formats with a decoder of their own, and how their files are named. EPS and WMF would start
# other programs, PDF, HDF5 and GRIB are not images; those with a weak magic number come last.
_FORMATS = {
    "JPEG": ".jpg .jpeg .jpe .jfif .mpo",
    "PNG": ".png .apng",
    "GIF": ".gif",
    "BMP": ".bmp",
    "PPM": ".ppm .pgm .pbm .pnm .pfm",
    "WEBP": ".webp",
    "TIFF": ".tif .tiff",
    "AVIF": ".avif",
    "JPEG2000": ".jp2 .j2k .jpc .jpf .jpx .j2c",
    "DIB": ".dib",
    "QOI": ".qoi",
    "SGI": ".sgi .rgb .rgba .bw",
    "PSD": ".psd",
    "DDS": ".dds",
    "SUN": ".ras",
    "ICO": ".ico",
    "PCX": ".pcx",
    "TGA": ".tga",
}

IMAGE_EXTENSIONS = frozenset(ending for endings in _FORMATS.values() for ending in endings.split())

_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


@overload
def decode(data: bytes, name: str) -> Image.Image: ...
@overload
def decode(data: bytes, name: str, channels: int) -> Picture: ...
def decode(data: bytes, name: str, channels: int = 3) -> Picture:
    """Return a picture, upright, as the rules at the top of this module say.

    Args:
        data: the encoded image, whole.
        name: what the user calls it; used in the error only.
        channels: 1 for mode "L", 3 for "RGB", else the number of bands that it must have.

    Raises:
        ImageError: whatever is wrong with it, with a reason of a few words.
    """
    with reasons(name):
        if is_bands(data):
            return _pictures_of(read_bands(data), name, channels)
        image = opened(data, name)
        image.load()
        return upright_picture(image, name, channels)


def thumbnail(data: bytes, name: str, side: int) -> np.ndarray:
    """Return a uint8 [side, side, 3] miniature, decoded as far as needed to know it is whole.

    A JPEG is decoded at a reduced scale, several times as fast as in full; a truncated one is still
    found out because all of its data is read. The aspect ratio is not kept. Where there are more
    bands than Pillow knows, the miniature shows their mean.

    Raises:
        ImageError: as `decode` does for the same bytes.
    """
    enough = 4 * side  # keeps what the reduced scale leaves out below one level in the miniature
    with reasons(name):
        if is_bands(data):
            image = Image.fromarray(np.rint(read_bands(data).mean(2)).astype(np.uint8))
            image = image.convert("RGB")
        else:
            image = opened(data, name)
            image.draft(None, (enough, enough))
            image.load()
            image = upright_rgb(image)
    return np.array(image.resize((side, side), Image.Resampling.BILINEAR))


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what Pillow and its C libraries would print about odd files.

    Hold it once, in the main thread, around a threaded pass. Covers Python warnings and log records
    that come from Pillow, and what libtiff writes to file descriptor 2; Python's own `sys.stderr`
    (a progress bar, say) keeps working meanwhile.
    """
    logger = logging.getLogger("PIL")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), _native_stderr_closed():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """Point file descriptor 2 at nothing, and `sys.stderr`, where it wrote there, at a copy."""
    try:
        copy = os.dup(2)
    except OSError:  # a process without stderr has nothing to hold back
        yield
        return
    stderr = sys.stderr
    with os.fdopen(copy, "w", encoding="utf-8", errors="backslashreplace", buffering=1) as kept:
        try:
            if stderr is not None:
                stderr.flush()
                if _descriptor(stderr) == 2:
                    sys.stderr = kept
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), 2)
            yield
        finally:
            os.dup2(copy, 2)
            if sys.stderr is kept:
                sys.stderr = stderr


def _descriptor(stream: object) -> int | None:
    try:
        return stream.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return None


@contextmanager
def reasons(name: str) -> Iterator[None]:
    """Raise ImageError, with a reason of a few words, for whatever is raised inside."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # plugins raise whatever a damaged file makes them run into
        raise ImageError(name, _reason(error)) from error


def opened(data: bytes, name: str) -> Image.Image:
    """Return the first frame of an image file, of which only the header has been read.

    Raises:
        ImageError: if it is empty or too large.
        Exception: whatever else Pillow runs into; `reasons` puts it in words.
    """
    if not data:
        raise ImageError(name, "empty file")
    image = Image.open(io.BytesIO(data), formats=tuple(_FORMATS))
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(name, "an image without pixels")
    if width * height > MAX_PIXELS:
        raise ImageError(name, f"too large ({width} x {height} pixels)")
    return image


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode in mode RGB and upright, by the rules of `decode`."""
    return _upright(_to_rgb(image), orientation_of(image))


def upright_picture(image: Image.Image, name: str, channels: int) -> Picture:
    """Return an image of any mode with a number of channels and upright, by the rules of `decode`.

    Raises:
        ImageError: if it should have bands that it has not.
    """
    if channels in (1, 3):
        rgb = upright_rgb(image)
        return rgb if channels == 3 else rgb.convert("L")
    _require_bands(name, len(image.getbands()), channels)
    orientation = orientation_of(image)
    return tuple(_upright(band, orientation) for band in image.split())


def _pictures_of(pixels: np.ndarray, name: str, channels: int) -> Picture:
    """Return each band of an array [H, W, C] as an image."""
    _require_bands(name, pixels.shape[2], channels)
    return tuple(Image.fromarray(np.ascontiguousarray(band)) for band in pixels.transpose(2, 0, 1))


def _require_bands(name: str, found: int, channels: int) -> None:
    if found != channels:
        raise ImageError(name, f"has {found} band{'s'[: found > 1]}, the network takes {channels}")


def _reason(error: Exception) -> str:
    """Say in a few words what Pillow ran into."""
    text = str(error).lower()
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or its header is damaged"
    if isinstance(error, Image.DecompressionBombError):
        return f"too large (more than {MAX_PIXELS} pixels)"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if "truncated" in text or isinstance(error, EOFError):
        return "truncated file"
    return "damaged file"


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) where there is none or it cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(value)
    except Exception:  # a damaged EXIF block must not cost the image
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return a loaded image of any mode in mode RGB."""
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        return _gray_to_rgb(image)
    if mode == "LAB":
        transform = ImageCms.buildTransform(
            ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
        )
        converted = ImageCms.applyTransform(image, transform)
        return image.convert("RGB") if converted is None else converted
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    # RGB is copied as well: the caller gets a plain image, free of the file it came from.
    return image.copy() if mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def _gray_to_rgb(image: Image.Image) -> Image.Image:
    """Scale gray of 16 or 32 bits, or floats, to 8 bits."""
    values = np.asarray(image).astype(np.float64)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        low, high = 0.0, 65535.0  # Pillow brings a PGM of any depth to 16 bits
    else:
        low, high = _value_range(values, of_floats=image.mode == "F")
    finite = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    share = (finite - low) / ((high - low) or 1.0)
    gray = np.rint(share.clip(0, 1) * 255).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return Image.fromarray(gray).convert("RGB")


def _value_range(values: np.ndarray, *, of_floats: bool) -> tuple[float, float]:
    """Return the first usual range that holds all finite values, or else their own."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    for usual in (1.0, 255.0, 65535.0) if of_floats else (255.0, 65535.0):
        if low >= 0 and high <= usual:
            return 0.0, usual
    return low, high
