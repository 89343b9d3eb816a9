"""How good predicted numbers are on labeled rows, each figure with a bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from topwork.errors import DataError
from topwork.learn import bootstrap
from topwork.learn.bootstrap import averages

Array = np.ndarray

ROUNDING = 1e-9  # a variance below this part of the mean square is none


def evaluate_numbers(
    predicted: Array,
    numbers: Array,
    names: Sequence[str],
    *,
    seed: int = 0,
    groups: Array | None = None,
) -> dict[str, Any]:
    """Compare predicted with true numbers; return plain data for a record.

    The mean absolute error, the root of the mean squared error, and r2 = 1 - (sum of squared
    errors) / (sum of squared deviations of the true numbers from their mean): 0 for the mean of
    the rows, 1 for a perfect prediction; None where the true numbers are all the same. Each is
    ``{"value", "interval": [low, high], "n"}``, the 95 % interval by a percentile bootstrap over
    rows, or over groups of them. Of several numbers the mean is on top, of r2 over those that have
    one, and each one's own under ``per_number``: an error has the unit of its number.

    Args:
        predicted: [n, m] floats.
        numbers: [n, m] floats.
        names: m names.
        seed: of the bootstrap.
        groups: [n] what belongs together, as photos of one person do; how many there are is then
            under ``groups``. None if each row stands alone.

    Raises:
        DataError: for no rows, shapes that do not fit, NaN or infinity.

    >>> report = evaluate_numbers(np.array([[1.0], [4.0]]), np.array([[1.0], [3.0]]), ["age"])
    >>> report["mean_absolute_error"]["value"], report["r2"]["value"]
    (0.5, 0.5)
    """
    predicted, numbers = np.asarray(predicted, np.float64), np.asarray(numbers, np.float64)
    _check(predicted, numbers, names)
    n, m = numbers.shape
    errors = predicted - numbers
    centered = numbers - numbers.mean(axis=0)
    terms = np.hstack([np.abs(errors), errors**2, centered, centered**2])

    def figures(times: Array) -> Array:
        """Return [k, 3, m]: the three figures of each number on k resamples."""
        absolute, squared, first, second = np.split(averages(times, terms), 4, axis=1)
        variance = second - first**2
        unexplained = np.full_like(squared, np.nan)
        np.divide(squared, variance, out=unexplained, where=variance > ROUNDING * second)
        return np.stack([absolute, np.sqrt(squared), 1 - unexplained], axis=1)

    values = figures(np.ones((1, n)))[0]
    count = bootstrap.resamples(n, m)
    resampled = bootstrap.estimates(figures, n, count, seed, groups)
    keys = ("mean_absolute_error", "root_mean_squared_error", "r2")
    return {
        "n": n,
        **bootstrap.counted(groups),
        **{
            key: bootstrap.mean_number(values[row], resampled[:, row], n)
            for row, key in enumerate(keys)
        },
        "per_number": [
            {
                "name": name,
                **{
                    key: bootstrap.number(values[row, column], resampled[:, row, column], n)
                    for row, key in enumerate(keys)
                },
            }
            for column, name in enumerate(names)
        ],
        "bootstrap": {"resamples": count, "seed": seed},
    }


def _check(predicted: Array, numbers: Array, names: Sequence[str]) -> None:
    if numbers.ndim != 2 or predicted.shape != numbers.shape or len(names) != numbers.shape[1]:
        raise DataError(
            f"predictions of shape {list(predicted.shape)} do not fit numbers of shape"
            f" {list(numbers.shape)} and {len(names)} names; give [n, m], [n, m] and m"
        )
    if len(numbers) == 0:
        raise DataError("no rows to evaluate; give at least one labeled image")
    off = ~(np.isfinite(predicted) & np.isfinite(numbers)).all(axis=1)
    if off.any():
        raise DataError(f"row {int(np.flatnonzero(off)[0])} holds NaN or infinity; give numbers")
