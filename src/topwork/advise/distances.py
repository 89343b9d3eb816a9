"""How far the target's statistics lie from the source's, where the source's are known.

Two places know them: batch norms, which keep mean and variance of the source at their inputs, and
a card beside the weights (`topwork.advise.source_card`), which keeps those of pooled codes. For
each channel both sides are taken for Gaussians and compared in units of the source's spread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from topwork.data.decode import quiet
from topwork.data.image_set import ImageSet
from topwork.data.loading import map_ahead, read_view
from topwork.data.views import Preprocessing, to_tensor
from topwork.errors import ImageError
from topwork.learn.batch_norm import batch_norms
from topwork.network.chain import Chain
from topwork.network.cut import Trunk

Array = np.ndarray

MOST_IMAGES = 64
BATCH = 8
FLOOR = 1e-3  # of a channel's source variance, relative to the mean over its layer's channels


@dataclass(frozen=True)
class CutDistance:
    """How far target and source lie apart between two cut points.

    Attributes:
        name: of the upper one.
        depth: likewise.
        distance: see `frechet_distance`; the mean over what was compared there.
    """

    name: str
    depth: int
    distance: float


@dataclass(frozen=True)
class Distances:
    """How far the target's statistics lie from the source's, by depth.

    Attributes:
        source: where the source's were found: "batch norms" or "card".
        depths: the lowest first; cut points without a known statistic are absent.
        images: of the target that were looked at.
    """

    source: str
    depths: tuple[CutDistance, ...]
    images: int

    @property
    def value(self) -> float:
        """The mean over the depths."""
        return float(np.mean([found.distance for found in self.depths]))

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        depths = [{"name": found.name, "distance": found.distance} for found in self.depths]
        return {
            "source": self.source,
            "depths": depths,
            "images": self.images,
            "value": self.value,
        }


def frechet_distance(
    source_mean: Array, source_variance: Array, mean: Array, variance: Array
) -> float:
    """Return how far two Gaussians lie apart in each channel, the mean over all channels.

    For a channel it is the squared Frechet (2-Wasserstein) distance over the source's variance,
    ``((m - m_s)^2 + (sd - sd_s)^2) / sd_s^2``, so it has no unit: 0 where both agree, 1 where the
    means lie a standard deviation apart, or where the target does not vary at all. Channels that
    hardly vary in the source are taken to vary by a thousandth of the layer's mean variance.

    Args:
        source_mean: [channels]; the others have the same shape.
        source_variance: not negative.
        mean: of the target.
        variance: not negative.

    >>> one = np.ones(1)
    >>> frechet_distance(0 * one, 4 * one, 2 * one, 4 * one)
    1.0
    """
    unit = np.maximum(source_variance, FLOOR * source_variance.mean())
    if not unit.any():
        return 0.0
    moved = np.square(mean - source_mean)
    widened = np.square(np.sqrt(variance) - np.sqrt(source_variance))
    return float(np.mean((moved + widened) / unit))


def batch_norm_distances(
    chain: Chain, pixels: Array, preprocessing: Preprocessing
) -> Distances | None:
    """Compare what batch norms know of the source with what the target's images give there.

    One eager pass over modules of its own, in eval mode: nothing of the chain is written.

    Args:
        chain: the network, its weights those of the source.
        pixels: uint8 [N, H, W, C], rendered images of the target.
        preprocessing: what they were rendered by.

    Returns:
        None if the network has no batch norms with statistics below L, or no image is given.
    """
    trunk = Trunk(chain, [cut.name for cut in chain.cuts[1:]])
    norms = [
        (number, norm)
        for number, segment in enumerate(trunk.segments)
        for _, norm in batch_norms(segment)
    ]
    if not norms or len(pixels) == 0:
        return None
    moments = [Moments() for _ in norms]
    hooks = [
        norm.register_forward_pre_hook(_noting(own))
        for (_, norm), own in zip(norms, moments, strict=True)
    ]
    for start in range(0, len(pixels), BATCH):
        trunk(to_tensor(pixels[start : start + BATCH], preprocessing).to(chain.device))
    for hook in hooks:
        hook.remove()
    by_cut: dict[int, list[float]] = {}
    for (number, norm), found in zip(norms, moments, strict=True):
        if found.count:
            by_cut.setdefault(number, []).append(_distance(norm, found))
    depths = tuple(
        CutDistance(trunk.cuts[number].name, trunk.cuts[number].depth, float(np.mean(values)))
        for number, values in sorted(by_cut.items())
    )
    return Distances("batch norms", depths, len(pixels)) if depths else None


@dataclass
class Moments:
    """Sums from which the mean and the variance of each channel come: float64 [channels]."""

    count: int = 0
    total: Array | float = 0.0
    squares: Array | float = 0.0

    def add(self, values: Tensor) -> None:
        """Count in a batch, [N, channels, ...]."""
        others = [axis for axis in range(values.dim()) if axis != 1]
        variance, mean = torch.var_mean(values.float(), dim=others, correction=0)
        count, center = values.numel() // values.shape[1], mean.double().cpu().numpy()
        self.count += count
        self.total = self.total + count * center
        self.squares = self.squares + count * (variance.double().cpu().numpy() + center**2)

    def mean_and_variance(self) -> tuple[Array, Array]:
        """Return both, of all that was counted in."""
        mean = np.asarray(self.total) / self.count
        return mean, np.maximum(np.asarray(self.squares) / self.count - mean**2, 0.0)
