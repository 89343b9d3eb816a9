"""Random views of a batch of pixels, drawn and computed on tensors, where training takes place.

The views that are cached (`topwork.data.augment`) are few; a method that compares views with each
other wants new ones at every step. These cost little: a crop, its resizing and the flip are one
`torch.nn.functional.grid_sample`. All changes of color are linear in RGB, up to one shift, so of
each image they are one 3x3 matrix. (Hue is turned in the plane of chrominance of YIQ, not in HSV.)

What is drawn comes from torch's global generator, which the training loop seeds for each step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from topwork.data.views import Preprocessing
from topwork.network.inputs import COLORS

ASPECTS = (3 / 4, 4 / 3)
JITTERED = 0.8
"""Share of the images whose colors are changed, where any are (Chen et al. 2020)."""
YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
"""Rows: luma and the two axes of chrominance of a color (NTSC)."""


@dataclass(frozen=True)
class Strength:
    """How far views differ from their image.

    Attributes:
        least_area: share of the image's area that a crop has at least (3/4, where it is more and a
            side was cut), up to 1; at 1 none is taken.
        flip: whether half of the views are mirrored, left for right.
        jitter: largest change of brightness, contrast and saturation, as a factor above or below 1.
        hue: largest turn of the hue, as a share of the full circle.
        gray: share of the views without any color.
    """

    least_area: float = 0.2
    flip: bool = True
    jitter: float = 0.4
    hue: float = 0.1
    gray: float = 0.2


STRONG = Strength()
"""What SimCLR does to CIFAR: color distortion of strength 0.5, no blur (Chen et al. 2020, B.9). But
crops have a fifth of the area at least; there it is 0.08, some nine pixels to a side."""
MILD = Strength(least_area=0.5, jitter=0.0, hue=0.0, gray=0.0)
"""Crops and flips alone."""


def random_views(images: Tensor, strength: Strength = STRONG) -> Tensor:
    """Return a random view of each image, of the same size.

    Crops have a share of the area that is drawn evenly from ``least_area`` to 1, their aspect ratio
    is changed by a log-uniform factor from 3/4 to 4/3 and their place is uniform; they are resized
    bilinearly. A side that would be longer than the image's is cut to it, so those meant to have
    more than 3/4 of the area may have somewhat less. Of images of another number of channels than
    three, brightness and contrast alone are changed.

    Args:
        images: floating point [n, C, H, W]; where colors are changed from 0 to 1, else any numbers.
        strength: of the changes.

    Returns:
        the views, likewise.

    >>> same = Strength(least_area=1.0, flip=False, jitter=0.0, hue=0.0, gray=0.0)
    >>> images = torch.rand(2, 3, 8, 8)
    >>> torch.equal(random_views(images, same), images), random_views(images).shape
    (True, torch.Size([2, 3, 8, 8]))
    """
    with torch.autocast(images.device.type, enabled=False):  # places need more than 8 bits
        if strength.least_area < 1 or strength.flip:
            images = _cropped(images, strength)
        if images.shape[1] != COLORS:
            return _brightened(images, strength) if strength.jitter else images
        if strength.jitter or strength.hue or strength.gray:
            images = _recolored(images, strength)
        return images


class RandomViews(nn.Module):
    """Random views of normalized pixels: maps [n, C, H, W] to the same.

    Args:
        preprocessing: how the pixels were normalized.
        strength: of the changes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing, strength: Strength = STRONG) -> None:
        super().__init__()
        self.strength = strength
        for name, row in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(row).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return a view of each image."""
        views = random_views(pixels * self.std + self.mean, self.strength)
        return (views - self.mean) / self.std


def _cropped(images: Tensor, strength: Strength) -> Tensor:
    """Return crops, mirrored or not, in the size of the images."""
    count, _, height, width = images.shape
    draws = torch.rand(5, count, device=images.device, dtype=images.dtype)
    area = strength.least_area + (1 - strength.least_area) * draws[0]
    lowest, highest = (math.log(aspect) for aspect in ASPECTS)
    ratio = (lowest + (highest - lowest) * draws[1]).exp()
    if strength.least_area == 1:
        ratio = torch.ones_like(ratio)
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()]).clamp(max=1)
    centers = (1 - sides) * (2 * draws[2:4] - 1)  # the whole image reaches from -1 to 1
    if strength.flip:
        sides = torch.stack([sides[0].where(draws[4] < 0.5, -sides[0]), sides[1]])
    places = [
        center[:, None] + side[:, None] * _pixel_centers(length, images)
        for center, side, length in zip(centers, sides, (width, height), strict=True)
    ]
    across = places[0][:, None, :].expand(count, height, width)
    down = places[1][:, :, None].expand(count, height, width)
    grid = torch.stack([across, down], 3)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _pixel_centers(length: int, like: Tensor) -> Tensor:
    """Return where the centers of pixels lie on an axis from -1 to 1."""
    steps = torch.arange(length, device=like.device, dtype=like.dtype)
    return (2 * steps + 1) / length - 1


def _brightened(images: Tensor, strength: Strength) -> Tensor:
    """Return images [n, C, H, W] of other brightness and contrast; nothing is cut off."""
    draws = 2 * torch.rand(3, len(images), 1, 1, 1, device=images.device, dtype=images.dtype) - 1
    changed = (draws[2] < 2 * JITTERED - 1).to(images.dtype)
    brightness, contrast = (1 + strength.jitter * changed * row for row in draws[:2])
    mean = images.mean((1, 2, 3), keepdim=True)
    return brightness * (mean + contrast * (images - mean))


def _recolored(images: Tensor, strength: Strength) -> Tensor:
    """Return images [n, 3, H, W] with other colors, cut off at 0 and 1."""
    count = len(images)
    draws = 2 * torch.rand(6, count, device=images.device, dtype=images.dtype) - 1
    changed = (draws[4] < 2 * JITTERED - 1).to(images.dtype)
    brightness, contrast, saturation = (1 + strength.jitter * changed * row for row in draws[:3])
    turn = 2 * math.pi * strength.hue * changed * draws[3]
    saturation = saturation.where(draws[5] >= 2 * strength.gray - 1, 0)

    to_yiq = torch.tensor(YIQ)
    from_yiq, to_yiq = torch.linalg.inv(to_yiq).to(images), to_yiq.to(images)
    chroma = torch.zeros(count, 3, 3, device=images.device, dtype=images.dtype)
    chroma[:, 0, 0] = 1
    chroma[:, 1, 1] = chroma[:, 2, 2] = saturation * turn.cos()
    chroma[:, 2, 1] = saturation * turn.sin()
    chroma[:, 1, 2] = -chroma[:, 2, 1]
    matrix = (brightness * contrast)[:, None, None] * (from_yiq @ chroma @ to_yiq)
    mean_luma = images.mean((2, 3)) @ to_yiq[0]
    shift = (brightness * (1 - contrast) * mean_luma)[:, None, None]
    colors = torch.baddbmm(shift, matrix, images.flatten(2))
    return colors.clamp(0, 1).view(images.shape)
