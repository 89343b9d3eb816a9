"""How sure a mean over images is, where some of them belong together."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit

from topwork.learn.metrics import NORMAL_QUANTILE

Array = np.ndarray

LEAST_TAIL = np.finfo(float).tiny
"""The least tail that is told from 0: it lies 37 standard errors out."""


def standard_error(
    values: Array, groups: Array | None = None, center: float | None = None
) -> float:
    """Return the standard error of a mean, rows of one group being taken together.

    It is infinite where all rows are of one group: nothing can be known of other groups then.

    Args:
        values: [n].
        groups: [n] what belongs together; None if each row stands alone.
        center: what deviations are taken from; by default the mean.

    >>> standard_error(np.array([0.0, 1.0, 0.0, 1.0])), standard_error(np.ones(3))
    (0.25, 0.0)
    >>> standard_error(np.array([0.0, 1.0]), np.array([7, 7]))
    inf
    """
    deviations = values - (values.mean() if center is None else center)
    correction = 1.0
    if groups is not None:
        deviations = np.bincount(np.unique(groups, return_inverse=True)[1], weights=deviations)
        count = len(deviations)
        if count < 2:
            return math.inf
        correction = count / (count - 1) if count < len(values) else 1.0
    return math.sqrt(correction * float(deviations @ deviations)) / len(values)


def degrees_of_freedom(groups: Array | None) -> float:
    """Return by how many groups a standard error is known: their number less one.

    It is infinite where each row stands alone: of single rows there are enough.

    >>> degrees_of_freedom(np.array([7, 7, 8])), degrees_of_freedom(np.array([7, 8, 9]))
    (1.0, inf)
    """
    if groups is None:
        return math.inf
    count = len(np.unique(groups))
    return count - 1.0 if count < len(groups) else math.inf


def quantile(freedom: float) -> float:
    """Return how many standard errors a 95 % interval reaches to each side, by Student's t.

    >>> round(quantile(4), 3), round(quantile(math.inf), 3)
    (2.776, 1.96)
    """
    return NORMAL_QUANTILE if math.isinf(freedom) else float(stdtrit(freedom, 0.975))


def on_the_normal_scale(ratio: float, freedom: float) -> float:
    """Return the standard errors of a normal distribution that are as rare as some of Student's t.

    Few groups are often 2 standard errors off by chance. On this scale 2 are as rare for any
    number of groups, so that one bar suits them all.

    Args:
        ratio: a mean in standard errors.
        freedom: by which the standard error is known.

    >>> round(on_the_normal_scale(2.776, 4), 2), on_the_normal_scale(2.776, math.inf)
    (1.96, 2.776)
    """
    if math.isinf(freedom) or math.isinf(ratio):
        return ratio
    if freedom < 1:
        return 0.0  # a single group tells nothing of others
    tail = max(float(stdtr(freedom, -abs(ratio))), LEAST_TAIL)
    return math.copysign(-float(ndtri(tail)), ratio)
