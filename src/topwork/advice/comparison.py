"""Comparing two ways on the same images: which is better, and can they be told apart at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from topwork.learn.standard_error import (
    degrees_of_freedom,
    on_the_normal_scale,
    quantile,
    standard_error,
)

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
    on every row. Rows of one group count as they lie together (a cluster-robust variance, and
    Student's t with one degree of freedom less than there are groups): ten photos of one person are
    no ten people. The rows that are added are no groups: they say nothing of how groups differ.

    Args:
        first: [n] floats, how right the first way is about each row.
        second: [n], likewise.
        groups: [n] what belongs together; None if each row stands alone.

    >>> right = np.repeat([1.0, 0.0], [90, 10])
    >>> found = paired_difference(right, np.roll(right, 10))
    >>> round(found.value, 3), found.told_apart
    (0.0, False)
    """
    gains, n = first - second, len(first)
    value, center = float(gains.mean()), float(gains.sum()) / (n + 2)
    error, freedom = n * standard_error(gains, groups, center), degrees_of_freedom(groups)
    if math.isinf(error):  # a single group tells nothing of others
        return Difference(value, -1.0, 1.0, n)
    half = quantile(freedom) * math.hypot(error, 1 - center, 1 + center) / (n + 2)
    low, high = min(value, center - half), max(value, center + half)
    if math.isfinite(freedom):  # of few groups the ends lie where no difference can be
        low, high = max(-1.0, low), min(1.0, high)
    return Difference(value, low, high, n)


def standard_errors_above(losses: Array, least: Array, groups: Array | None = None) -> float:
    """Return how far the mean of losses lies above that of others, in paired standard errors.

    Of groups of several rows it is what is as rare where standard errors are known exactly, so that
    2 mean the same for any number of groups.

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
    own = None if groups is None else groups[known]
    error, mean = standard_error(rises, own), float(rises.mean())
    if error > 0:
        return on_the_normal_scale(mean / error, degrees_of_freedom(own))
    return math.copysign(math.inf, mean) if mean else 0.0


def may_be_flawless(losses: Array, least: Array, groups: Array | None = None) -> bool:
    """Say whether the 95 % interval of what is gained over some losses reaches all of them.

    Then groups are too few, or too unlike each other, for anything to be said: not even that what
    makes no error at all is better.

    Args:
        losses: as in `standard_errors_above`.
        least: likewise.
        groups: likewise.

    >>> losses, least = np.full(6, 1.5), np.array([0.1, 0.1, 0.1, 0.9, 0.8, 0.9])
    >>> may_be_flawless(losses, least, np.array([0, 0, 0, 1, 1, 1])), may_be_flawless(losses, least)
    (True, False)
    """
    known = np.isfinite(losses) & np.isfinite(least)
    own = None if groups is None else groups[known]
    gains = (losses - least)[known]
    if not len(gains) or math.isinf(error := standard_error(gains, own)):
        return True
    half = quantile(degrees_of_freedom(own)) * error
    return bool(gains.mean() + half >= losses[known].mean())
