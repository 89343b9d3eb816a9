"""From the bytes of an image file to the pixels of a view: exactly, or fast.

"exact" decodes and resizes with Pillow: bit for bit what timm's transform gives. Models are scored
with it. "fast" is for the images of a frozen trunk, and differs in two things:

- An ordinary JPEG is decoded at the smallest scale that still leaves the pixels that are wanted
  (`topwork.data.jpeg`). The part that a random view shows then begins at a whole pixel of that
  scale, so it is shifted by less than one of them; the plain view stays in its place.
- Pictures of one or three channels are resized by PyTorch's antialiased interpolation of 8-bit
  integers, which follows Pillow's and differs from it by rounding: by a level or two. The filter
  does not look beyond the edges of a random part, which concerns the rim of that part only.

Everything else is the same: which part is shown, orientation, what is refused and for what reason;
so are, as a whole, nearest and Lanczos resampling, other numbers of bands, and extreme strips.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from topwork.data.augment import Crop, View, draw, render_view
from topwork.data.bands import is_bands
from topwork.data.decode import (
    DECODING,
    decode,
    opened,
    orientation_of,
    upright_picture,
)
from topwork.data.jpeg import MARGIN, decode_jpeg, is_ordinary, reduction
from topwork.data.orientation import as_stored, upright, upright_size
from topwork.data.views import MAX_RESIZED_PIXELS, Preprocessing, center_offset, resized_size

DECODINGS = ("fast", "exact")

RULES = 1
"""Version of the fast way; raise it when the same bytes would give other pixels."""

FAST_INTERPOLATIONS = ("bilinear", "bicubic")


def decoding_facts(decoding: str) -> dict[str, Any]:
    """Return what identifies a way of decoding in the cache, as plain data.

    >>> decoding_facts("exact") == DECODING, sorted(decoding_facts("fast")["fast"])
    (True, ['margin', 'rules', 'simplejpeg', 'torch', 'vectors'])
    """
    if decoding == "exact":
        return dict(DECODING)
    import torch  # the rest of the data layer starts without it

    fast = {
        "rules": RULES,
        "margin": MARGIN,
        "simplejpeg": simplejpeg.__version__,
        "torch": torch.__version__,
        "vectors": torch.backends.cpu.get_cpu_capability(),
    }
    return {**DECODING, "fast": fast}


def rendered(
    data: bytes,
    name: str,
    preprocessing: Preprocessing,
    view: View,
    digest: str,
    decoding: str,
) -> np.ndarray:
    """Return a view of an encoded image as uint8 [H, W, C], contiguous and writable.

    It is the same in every call and from any thread.

    Args:
        data: the image file, whole.
        name: what the user calls it; used in the error only.
        preprocessing: the size, the crop, the interpolation and the number of channels.
        view: which rendering.
        digest: the SHA-256 of the data, in hexadecimal.
        decoding: "fast" or "exact".

    Raises:
        ImageError: whatever is wrong with it; the same for both.
    """
    pixels = None
    if decoding == "fast" and _has_fast_way(data, preprocessing):
        with suppress(Exception):  # the exact way then says what is wrong, or copes
            pixels = _fast(data, name, preprocessing, view, digest)
    if pixels is None:
        picture = decode(data, name, preprocessing.channels)
        pixels = render_view(picture, preprocessing, view, digest)
    return pixels


def _has_fast_way(data: bytes, preprocessing: Preprocessing) -> bool:
    return (
        preprocessing.interpolation in FAST_INTERPOLATIONS
        and preprocessing.channels in (1, 3)
        and not is_bands(data)
    )


def _fast(
    data: bytes, name: str, preprocessing: Preprocessing, view: View, digest: str
) -> np.ndarray | None:
    """Return a view in the fast way; None for a strip that would be resized to too many pixels."""
    image = opened(data, name)
    if is_ordinary(image):
        orientation = orientation_of(image)
        framing = _framing(upright_size(image.size, orientation), preprocessing, view, digest)
        if framing is None:
            return None
        reduced = reduction((framing.part.width, framing.part.height), framing.resized)
        stored = decode_jpeg(data, image, reduced)
        if stored is not None:
            pixels = _framed(stored, reduced, orientation, framing, preprocessing)
            return _with_channels(pixels, preprocessing.channels)
    image.load()
    picture = upright_picture(image, name, preprocessing.channels)
    assert isinstance(picture, Image.Image)  # of one or three channels
    framing = _framing(picture.size, preprocessing, view, digest)
    if framing is None:
        return None
    pixels = np.array(picture).reshape(picture.height, picture.width, preprocessing.channels)
    return _framed(pixels, 1, 1, framing, preprocessing)


@dataclass(frozen=True, slots=True)
class _Framing:
    """What a view shows of a picture, and how.

    Attributes:
        size: the picture's width and height.
        part: which part of it, in its own pixels.
        resized: the width and height to which the part is brought.
        corner: left and top of the view in the resized part.
        mirrored: whether left and right are then exchanged.
    """

    size: tuple[int, int]
    part: Crop
    resized: tuple[int, int]
    corner: tuple[int, int]
    mirrored: bool


def _framing(
    size: tuple[int, int], preprocessing: Preprocessing, view: View, digest: str
) -> _Framing | None:
    """Return what a view shows of an upright picture of some width and height.

    None means a strip for which the exact way has one of its own.
    """
    height, width = preprocessing.size
    if view.number:
        part, mirrored = draw(size, view, digest)
        return _Framing(size, part, (width, height), (0, 0), mirrored)
    resized = resized_size(size, preprocessing)
    if resized[0] * resized[1] > MAX_RESIZED_PIXELS:
        return None
    corner = center_offset(resized[0], width), center_offset(resized[1], height)
    return _Framing(size, Crop(0, 0, *size), resized, corner, mirrored=False)


def _framed(
    stored: np.ndarray,
    reduced: int,
    orientation: int,
    framing: _Framing,
    preprocessing: Preprocessing,
) -> np.ndarray:
    """Cut the part out of stored pixels, resize it, turn it upright, and cut the view out of that.

    Args:
        stored: uint8 [H, W, C].
        reduced: by what the sides were divided to give these.
        orientation: by EXIF; what makes the picture upright.
        framing: what to show, in the pixels of the upright picture at its whole size.
        preprocessing: the size of the view, and how to resize.
    """
    part = as_stored(framing.part, framing.size, orientation)
    width, height = upright_size(framing.resized, orientation)
    pixels = stored[
        _stretch(part.top, part.height, reduced), _stretch(part.left, part.width, reduced)
    ]
    factors = reduced * height / part.height, reduced * width / part.width
    resized = _resized(pixels, factors, preprocessing.interpolation)[:height, :width]
    left, top = framing.corner
    height, width = preprocessing.size
    shown = upright(resized, orientation)[top : top + height, left : left + width]
    return np.ascontiguousarray(shown[:, ::-1] if framing.mirrored else shown)


def _stretch(start: int, length: int, reduced: int) -> slice:
    """Return where so many pixels lie when they are fewer, the last one perhaps in part."""
    first = start // reduced
    return slice(first, first - (-length // reduced))


def _resized(pixels: np.ndarray, factors: tuple[float, float], interpolation: str) -> np.ndarray:
    """Return uint8 [H, W, C] with height and width multiplied by factors, and then rounded down."""
    import torch  # the rest of the data layer starts without it
    from torch.nn.functional import interpolate

    channels_last = torch.from_numpy(np.ascontiguousarray(pixels))[None].permute(0, 3, 1, 2)
    # What is a whole number must not be rounded down to the one before.
    slightly_more = [factor * (1 + 1e-9) for factor in factors]
    resized = interpolate(
        channels_last, scale_factor=slightly_more, mode=interpolation, antialias=True
    )
    return resized.permute(0, 2, 3, 1)[0].numpy()


def _with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Return gray as colors, or colors as their luminance, where that is wanted."""
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    return np.array(Image.fromarray(pixels).convert("L"))[:, :, None]
