"""Percentile bootstrap over rows (Efron 1979), as counts of how often each row was drawn."""

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


def drawn(n: int, count: int, seed: int) -> Iterator[Array]:
    """Yield in parts how often each of n rows is drawn in each resample, int64 [part, n]."""
    generator = np.random.default_rng(seed)
    at_once = max(1, DRAWS_AT_ONCE // n)
    for first in range(0, count, at_once):
        size = min(at_once, count - first)
        rows = generator.integers(0, n, size=(size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(rows.ravel(), minlength=size * n).reshape(size, n)


def estimates(statistics: Callable[[Array], Array], n: int, count: int, seed: int) -> Array:
    """Return statistics [count, k] of resamples, given a function from [part, n] to [part, k]."""
    return np.concatenate([statistics(times) for times in drawn(n, count, seed)])


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
