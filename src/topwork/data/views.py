"""The plain view of an image: resized, center-cropped, and normalized as its network expects.

`to_tensor(render(image, p), p)` gives, bit for bit, what timm's evaluation transform gives
(`timm.data.create_transform(is_training=False)`, crop mode "center"). It is cut in two so that
pixels can be kept and shipped as uint8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from topwork.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import torch

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# A resized image of more pixels than this (a strip some hundred times as long as wide) is never
# made whole; Pillow holds four bytes per pixel, so this is 256 MiB.
_MAX_RESIZED_PIXELS = 1 << 26


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What happens to an image before a network sees it.

    Attributes:
        size: height and width in pixels that the network sees.
        crop: the fraction of the resized image that the center crop keeps, above 0 and up to 1; the
            short side is resized to ``floor(size / crop)`` (timm's ``crop_pct``).
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.
        mean: per channel, on the scale 0..1; subtracted.
        std: per channel, on the scale 0..1; divided by.

    >>> Preprocessing((224, 224), 0.875, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).resized_to
    (256, 256)
    """

    size: tuple[int, int]
    crop: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise UsageError(f"preprocessing: size is {self.size}; give height and width in pixels")
        if not 0 < self.crop <= 1:
            raise UsageError(f"preprocessing: crop is {self.crop}; give a fraction in (0, 1]")
        if self.interpolation not in _RESAMPLING:
            near = did_you_mean(self.interpolation, _RESAMPLING)
            raise UsageError(
                f"preprocessing: unknown interpolation {self.interpolation!r}{near}; "
                f"known are {', '.join(_RESAMPLING)}"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UsageError("preprocessing: give three means and three positive stds")

    @property
    def resized_to(self) -> tuple[int, int]:
        """Height and width that the resized image covers, before the center crop."""
        height, width = self.size
        return math.floor(height / self.crop), math.floor(width / self.crop)

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
                mean=tuple(float(value) for value in data["mean"]),  # type: ignore[arg-type]
                std=tuple(float(value) for value in data["std"]),  # type: ignore[arg-type]
            )
        except (TypeError, ValueError) as error:
            raise UsageError(f"preprocessing: a value has the wrong type ({error})") from error


def render(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """Return the plain view of an RGB image as uint8 [H, W, 3], writable.

    The short side is resized to what `Preprocessing.resized_to` says, then the center is cut out.
    A strip so elongated that its resized form would exceed 2**26 pixels is resampled in the region
    of the crop only: the same picture, but for roundings (Pillow may turn its two passes round).

    >>> p = Preprocessing((8, 8), 0.5, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    >>> render(Image.new("RGB", (40, 30), "red"), p)[0, 0].tolist()
    [255, 0, 0]
    """
    height, width = preprocessing.size
    resized = _resized_size(image.size, preprocessing)
    left, top = _offset(resized[0], width), _offset(resized[1], height)
    resampling = _RESAMPLING[preprocessing.interpolation]
    if resized[0] * resized[1] <= _MAX_RESIZED_PIXELS:
        whole = image.resize(resized, resampling)
        return np.array(whole.crop((left, top, left + width, top + height)))
    scale = image.width / resized[0], image.height / resized[1]
    box = (
        left * scale[0],
        top * scale[1],
        min((left + width) * scale[0], image.width),
        min((top + height) * scale[1], image.height),
    )
    return np.array(image.resize((width, height), resampling, box=box))


def to_tensor(pixels: np.ndarray, preprocessing: Preprocessing) -> torch.Tensor:
    """Return uint8 [N, H, W, 3] as a normalized float32 tensor [N, 3, H, W], contiguous.

    Values are divided by 255, then the channel's mean is subtracted and its std divided by, in
    float32 and in this order, as torchvision does.
    """
    import torch  # the rest of the data layer starts without it

    channels_first = pixels.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    mean = torch.tensor(preprocessing.mean, dtype=torch.float32).view(-1, 1, 1)
    std = torch.tensor(preprocessing.std, dtype=torch.float32).view(-1, 1, 1)
    return torch.from_numpy(channels_first).div_(255).sub_(mean).div_(std)


def _resized_size(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """Return width and height of the resized image; the rounding is torchvision's and timm's."""
    width, height = size
    target_height, target_width = preprocessing.resized_to
    if target_height == target_width:
        longer = int(target_width * max(size) / min(size))
        return (target_width, longer) if width <= height else (longer, target_width)
    ratio = min(height / target_height, width / target_width)
    return round(width / ratio), round(height / ratio)


def _offset(available: int, wanted: int) -> int:
    """Return where a center crop begins; negative where black is added on both sides."""
    if wanted > available:
        return -((wanted - available) // 2)
    return round((available - wanted) / 2)
