"""How far the target's statistics lie from the source's, where the source's are known.

Two places know them: batch norms, which keep mean and variance of the source at their inputs
(`topwork.advice.norm_distances`), and a card beside the weights, which keeps those of pooled codes
(`topwork.advice.source_card`). For each channel both sides are taken for Gaussians and compared in
units of the source's spread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray

SIMILAR, DIFFERENT, CANNOT_TELL = "similar", "different", "cannot tell"

LIMITS = {"batch norms": (0.12, 0.2), "card": (0.8, 0.9)}
"""Up to where statistics are those of the source, and from where on they are others. Of codes the
distance is larger: pooling leaves the spread between images, and no more that within each. From
``benchmarks/similarity.py``."""

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

    @property
    def says(self) -> str:
        """What the distance alone says of similarity."""
        near, far = LIMITS[self.source]
        if near < self.value < far:
            return CANNOT_TELL
        return SIMILAR if self.value <= near else DIFFERENT

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        depths = [{"name": found.name, "distance": found.distance} for found in self.depths]
        return {
            "source": self.source,
            "depths": depths,
            "images": self.images,
            "value": self.value,
            "says": self.says,
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
