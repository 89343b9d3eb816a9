"""Percentile bootstrap over rows (Efron 1979), as counts of how often each row was drawn.

Rows that belong together are drawn together (Field & Welsh 2007). With few groups the intervals are
too narrow even so: 20 are enough, 5 are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Array = np.ndarray

CONFIDENCE = 0.95
MOST_RESAMPLES, FEWEST_RESAMPLES = 2000, 200
DRAWS = 10**8  # resampled rows in all: about a second
DRAWS_AT_ONCE = 2**20


def resamples(n: int, columns: int = 1) -> int:
    """Return how many resamples n rows with so many columns each allow in about a second.

    >>> resamples(1000), resamples(10**6)
    (2000, 200)
    """
    return max(FEWEST_RESAMPLES, min(MOST_RESAMPLES, DRAWS // (n * columns)))


def shared(groups: Array | None) -> Array | None:
    """Return the number of each row's group, int64 [n] from 0; None where each row stands alone.

    >>> shared(np.array(["ann", "bob", "ann"])).tolist(), shared(np.array([7, 3])), shared(None)
    ([0, 1, 0], None, None)
    """
    if groups is None:
        return None
    names, members = np.unique(groups, return_inverse=True)
    return members if len(names) < len(members) else None


def counted(groups: Array | None) -> dict[str, int]:
    """Return how many groups there are, for a record; nothing where each row stands alone.

    >>> counted(np.array(["ann", "bob", "ann"])), counted(None)
    ({'groups': 2}, {})
    """
    members = shared(groups)
    return {} if members is None else {"groups": int(members.max()) + 1}


def drawn(n: int, count: int, seed: int, groups: Array | None = None) -> Iterator[Array]:
    """Yield in parts how often each of n rows is drawn in each resample, int64 [part, n].

    Groups [n] are drawn whole, as many as there are, so that a resample may have more rows than n,
    or fewer. All rows being of one group, rows are drawn: they tell of this group only.
    """
    members = shared(groups)
    if members is not None and members.max() == 0:
        members = None
    units = n if members is None else int(members.max()) + 1
    generator = np.random.default_rng(seed)
    at_once = max(1, DRAWS_AT_ONCE // n)
    for first in range(0, count, at_once):
        size = min(at_once, count - first)
        found = generator.integers(0, units, size=(size, units)) + units * np.arange(size)[:, None]
        times = np.bincount(found.ravel(), minlength=size * units).reshape(size, units)
        yield times if members is None else times[:, members]


def estimates(
    statistics: Callable[[Array], Array],
    n: int,
    count: int,
    seed: int,
    groups: Array | None = None,
) -> Array:
    """Return statistics [count, k] of resamples, given a function from [part, n] to [part, k]."""
    return np.concatenate([statistics(times) for times in drawn(n, count, seed, groups)])


def averages(times: Array, columns: Array) -> Array:
    """Return the means [resamples, k] of columns [n, k], each row as often as it was drawn."""
    return times @ columns / times.sum(axis=1, keepdims=True)


def number(value: float, resampled: Array, n: int) -> dict[str, Any]:
    """Return value, percentile interval and n as plain data.

    Resamples that allow no estimate (NaN) are passed over; where the value itself is none, both
    are None. The interval always holds the value.

    >>> number(0.5, np.array([0.4, 0.5, np.nan, 0.6]), 10)["interval"]
    [0.405, 0.595]
    """
    if not np.isfinite(value):
        return {"value": None, "interval": None, "n": n}
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    known = resampled[np.isfinite(resampled)]
    low, high = np.quantile(known, tails).tolist() if len(known) else (value, value)
    return {"value": float(value), "interval": [min(low, value), max(high, value)], "n": n}


def mean_number(values: Array, resampled: Array, n: int) -> dict[str, Any]:
    """Return the mean of those of several values [k] that there are (not NaN), as plain data.

    To the mean of a resample, a value that it does not allow adds that of all rows.

    >>> mean_number(np.array([0.5, np.nan]), np.array([[0.4, np.nan], [np.nan, 0.1]]), 9)["value"]
    0.5
    """
    known = np.isfinite(values)
    if not known.any():
        return number(np.nan, resampled[:, 0], n)
    filled = np.where(np.isfinite(resampled), resampled, values)[:, known]
    return number(values[known].mean(), filled.mean(axis=1), n)
