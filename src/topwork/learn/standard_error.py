"""How sure a mean over images is, where some of them belong together."""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def standard_error(values: Array, groups: Array | None = None) -> float:
    """Return the standard error of a mean, rows of one group being taken together.

    It is infinite where all rows are of one group: nothing can be known of other groups then.

    >>> standard_error(np.array([0.0, 1.0, 0.0, 1.0])), standard_error(np.ones(3))
    (0.25, 0.0)
    >>> standard_error(np.array([0.0, 1.0]), np.array([7, 7]))
    inf
    """
    deviations = values - values.mean()
    correction = 1.0
    if groups is not None:
        deviations = np.bincount(np.unique(groups, return_inverse=True)[1], weights=deviations)
        count = len(deviations)
        if count < 2:
            return math.inf
        correction = count / (count - 1) if count < len(values) else 1.0
    return math.sqrt(correction * float(deviations @ deviations)) / len(values)
