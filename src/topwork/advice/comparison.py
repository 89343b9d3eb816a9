"""Comparing two ways on the same images: which is better, and can they be told apart at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from topwork.learn.metrics import NORMAL_QUANTILE
from topwork.learn.standard_error import standard_error

Array = np.ndarray

ONE_STANDARD_ERROR = 1.0
"""How far the loss of a way may lie above the best one's to count as equal, in standard errors of
the paired difference: the rule of Breiman et al. (1984) for taking the simplest of what is as good.
A way must be chosen in any case, so that more caution would only favor the cheap one more."""


@dataclass(frozen=True)
class Difference:
    """How much one way is better than another on the same rows, with its 95 % interval.

    Attributes:
        value: mean of the first less mean of the second.
        low: end of the interval.
        high: end of the interval.
        n: rows.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def record(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "value": self.value,
            "interval": [self.low, self.high],
            "n": self.n,
            "told_apart": self.told_apart,
        }


def paired_difference(first: Array, second: Array, groups: Array | None = None) -> Difference:
    """Compare two ways by how right each row is, 0 to 1.

    The interval is Bonett & Price's (2012) for paired proportions: two rows are added in which
    one way is right and the other wrong, each once, so that it keeps a width where the two agree
    on every row. Rows of one group count as they lie together (a cluster-robust variance): ten
    photos of one person are no ten people.

    Args:
        first: [n] floats, how right the first way is about each row.
        second: [n], likewise.
        groups: [n] what belongs together; None if each row stands alone.

    >>> right = np.repeat([1.0, 0.0], [90, 10])
    >>> found = paired_difference(right, np.roll(right, 10))
    >>> round(found.value, 3), found.told_apart
    (0.0, False)
    """
    gains = np.append(first - second, [1.0, -1.0])
    if groups is not None:
        own = np.unique(groups, return_inverse=True)[1]
        groups = np.append(own, [len(own), len(own) + 1])
    center = float(gains.mean())
    half = NORMAL_QUANTILE * standard_error(gains, groups)
    value = float((first - second).mean())
    return Difference(value, min(value, center - half), max(value, center + half), len(first))


def standard_errors_above(losses: Array, least: Array, groups: Array | None = None) -> float:
    """Return how far the mean of losses lies above that of others, in paired standard errors.

    Args:
        losses: [n] of one way.
        least: [n] of another, on the same rows. Rows with NaN in either are left out.
        groups: [n] what belongs together.

    >>> round(standard_errors_above(np.array([1.0, 1.2, 1.4]), np.array([1.0, 1.0, 1.0])), 2)
    2.12
    """
    known = np.isfinite(losses) & np.isfinite(least)
    rises = (losses - least)[known]
    if not len(rises):
        return 0.0
    error = standard_error(rises, None if groups is None else groups[known])
    mean = float(rises.mean())
    if error > 0:
        return mean / error  # 0 where nothing can be told
    return math.copysign(math.inf, mean) if mean else 0.0
