"""The plain view of an image: resized, center-cropped, and normalized as its network expects.

`to_tensor(render(image, p), p)` gives, bit for bit, what timm's evaluation transform gives
(`timm.data.create_transform(is_training=False)`, crop mode "center"). It is cut in two so that
pixels can be kept and shipped as uint8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from topwork.data.decode import Picture
from topwork.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import torch

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# A resized image of more pixels than this (a strip some hundred times as long as wide) is never
# made whole; Pillow holds four bytes per pixel, so this is 256 MiB.
MAX_RESIZED_PIXELS = 1 << 26


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What happens to an image before a network sees it.

    Attributes:
        size: height and width in pixels that the network sees.
        crop: the fraction of the resized image that the center crop keeps, above 0 and up to 1; the
            short side is resized to ``floor(size / crop)`` (timm's ``crop_pct``).
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.
        mean: per channel, on the scale 0..1; subtracted. Their number is that of the channels.
        std: per channel, on the scale 0..1; divided by.

    >>> Preprocessing((224, 224), 0.875, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).resized_to
    (256, 256)
    """

    size: tuple[int, int]
    crop: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise UsageError(f"preprocessing: size is {self.size}; give height and width in pixels")
        if not 0 < self.crop <= 1:
            raise UsageError(f"preprocessing: crop is {self.crop}; give a fraction in (0, 1]")
        if self.interpolation not in RESAMPLING:
            near = did_you_mean(self.interpolation, RESAMPLING)
            raise UsageError(
                f"preprocessing: unknown interpolation {self.interpolation!r}{near}; "
                f"known are {', '.join(RESAMPLING)}"
            )
        if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise UsageError("preprocessing: give a mean and a positive std for each channel")

    @property
    def channels(self) -> int:
        """Channels that the network sees: 1 gray, 3 red, green and blue, or any other bands."""
        return len(self.mean)

    @property
    def resized_to(self) -> tuple[int, int]:
        """Height and width that the resized image covers, before the center crop."""
        height, width = self.size
        return math.floor(height / self.crop), math.floor(width / self.crop)

    def adapted(self, size: tuple[int, int] | None, channels: int | None) -> Preprocessing:
        """Return the same for another size or channel count; None leaves what is.

        Gray gets the mean of the channels' means and stds, other channels have them in turn.

        >>> rgb = Preprocessing((224, 224), 0.875, "bicubic", (0.25, 0.5, 0.75), (1.0, 1.0, 1.0))
        >>> gray, bands = rgb.adapted((64, 48), 1), rgb.adapted(None, 5)
        >>> gray.size, gray.mean, bands.mean
        ((64, 48), (0.5,), (0.25, 0.5, 0.75, 0.25, 0.5))
        """
        count = channels or self.channels
        return replace(
            self,
            size=size or self.size,
            mean=_for_channels(self.mean, count),
            std=_for_channels(self.std, count),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `from_dict` reads back and JSON can hold."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessing:
        """Build from what `to_dict` gave.

        Raises:
            UsageError: a key is missing or unknown, or a value makes no sense.
        """
        known = [field.name for field in fields(cls)]
        for key in data:
            if key not in known:
                raise UsageError(f"preprocessing: unknown key {key!r}{did_you_mean(key, known)}")
        for key in known:
            if key not in data:
                raise UsageError(f"preprocessing: key {key!r} is missing")
        try:
            return cls(
                size=tuple(int(side) for side in data["size"]),  # type: ignore[arg-type]
                crop=float(data["crop"]),
                interpolation=str(data["interpolation"]),
                mean=tuple(float(value) for value in data["mean"]),
                std=tuple(float(value) for value in data["std"]),
            )
        except (TypeError, ValueError) as error:
            raise UsageError(f"preprocessing: a value has the wrong type ({error})") from error


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if channels == len(values):
        return values
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[number % len(values)] for number in range(channels))


def render(picture: Picture, preprocessing: Preprocessing) -> np.ndarray:
    """Return the plain view of a picture as uint8 [H, W, C], writable.

    The short side is resized to what `Preprocessing.resized_to` says, then the center is cut out.
    A strip so elongated that its resized form would exceed 2**26 pixels is resampled in the region
    of the crop only: the same picture, but for roundings (Pillow may turn its two passes round).

    >>> p = Preprocessing((8, 8), 0.5, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    >>> render(Image.new("RGB", (40, 30), "red"), p)[0, 0].tolist()
    [255, 0, 0]
    """
    height, width = preprocessing.size
    original = size_of(picture)
    resized = resized_size(original, preprocessing)
    left, top = center_offset(resized[0], width), center_offset(resized[1], height)
    resampling = RESAMPLING[preprocessing.interpolation]
    if resized[0] * resized[1] <= MAX_RESIZED_PIXELS:
        crop = (left, top, left + width, top + height)
        return by_band(picture, lambda part: part.resize(resized, resampling).crop(crop))
    scale = original[0] / resized[0], original[1] / resized[1]
    box = (
        left * scale[0],
        top * scale[1],
        min((left + width) * scale[0], original[0]),
        min((top + height) * scale[1], original[1]),
    )
    return by_band(picture, lambda part: part.resize((width, height), resampling, box=box))


def size_of(picture: Picture) -> tuple[int, int]:
    """Return the width and height of a picture."""
    return picture[0].size if isinstance(picture, tuple) else picture.size


def by_band(picture: Picture, draw: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Return what a Pillow operation makes of a picture as uint8 [H, W, C], writable.

    Args:
        picture: what `decode` gave.
        draw: applied to the picture, or to each of its bands where it comes as such.
    """
    if isinstance(picture, tuple):
        return np.stack([np.asarray(draw(band)) for band in picture], axis=2)
    pixels = np.array(draw(picture))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def to_tensor(pixels: np.ndarray, preprocessing: Preprocessing) -> torch.Tensor:
    """Return uint8 [N, H, W, C] as a normalized float32 tensor [N, C, H, W], contiguous.

    Values are divided by 255, then the channel's mean is subtracted and its std divided by, in
    float32 and in this order, as torchvision does.

    Raises:
        UsageError: if the pixels have another number of channels than the preprocessing.
    """
    import torch  # the rest of the data layer starts without it

    if pixels.shape[3] != preprocessing.channels:
        raise UsageError(
            f"pixels have {pixels.shape[3]} channels, the network takes {preprocessing.channels};"
            " decode them for that number"
        )
    channels_first = pixels.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    mean = torch.tensor(preprocessing.mean, dtype=torch.float32).view(-1, 1, 1)
    std = torch.tensor(preprocessing.std, dtype=torch.float32).view(-1, 1, 1)
    return torch.from_numpy(channels_first).div_(255).sub_(mean).div_(std)


def resized_size(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """Return width and height of the resized image; the rounding is torchvision's and timm's.

    Args:
        size: width and height of the picture.
        preprocessing: to what the short side is resized.
    """
    width, height = size
    target_height, target_width = preprocessing.resized_to
    if target_height == target_width:
        longer = int(target_width * max(size) / min(size))
        return (target_width, longer) if width <= height else (longer, target_width)
    ratio = min(height / target_height, width / target_width)
    return round(width / ratio), round(height / ratio)


def center_offset(available: int, wanted: int) -> int:
    """Return where a center crop begins; negative where black is added on both sides."""
    if wanted > available:
        return -((wanted - available) // 2)
    return round((available - wanted) / 2)
