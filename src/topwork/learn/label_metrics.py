"""How good a model is that gives every image any number of labels, with counts and intervals.

Shares of rows or of named labels have Wilson's interval; the others a percentile bootstrap over
rows, which is too narrow where a label has few positive rows: look at its n. Both take rows that
belong together as `metrics` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from topwork.errors import DataError
from topwork.learn import bootstrap
from topwork.learn.bootstrap import averages
from topwork.learn.metrics import LEAST_PROBABILITY, share
from topwork.learn.ranking import rank
from topwork.network.answers import LIKELY

Array = np.ndarray


def evaluate_labels(
    probabilities: Array,
    labels: Array,
    names: Sequence[str],
    *,
    seed: int = 0,
    groups: Array | None = None,
) -> dict[str, Any]:
    """Compare the probabilities of labels with the labels; return plain data for a record.

    - ``mean_average_precision``: the mean of the labels' average precisions (as scikit-learn's
      ``average_precision_score``, not interpolated).
    - ``f1``: the mean of the labels' F1 scores, at probability 0.5.
    - ``exact_match``: the share of rows with all labels right at 0.5.
    - ``label_accuracy``: the share of right labels at 0.5 over all rows and labels.
    - ``log_loss``: the binary one, in nats, over all rows and labels, p no less than 2.2e-16.
    - ``per_label``: n, the rows that have the label; average precision, F1, precision, recall.

    Each is ``{"value", "interval", "n"}``, None for both where it is not defined. Labels that no
    row has are named under ``absent`` and take no part in the means of average precision and F1;
    to the mean of a resample, a label that it lacks adds its value on all rows.

    Args:
        probabilities: [n, m] floats from 0 to 1.
        labels: [n, m], 0 or 1.
        names: m names.
        seed: of the bootstrap.
        groups: [n] what belongs together, as photos of one person do; how many there are is then
            under ``groups``. None if each row stands alone.

    Raises:
        DataError: for no rows, shapes that do not fit, or values that are none of these.

    >>> report = evaluate_labels(
    ...     np.array([[0.9, 0.6], [0.8, 0.1]]), np.array([[1, 1], [1, 0]]), ["wet", "cold"]
    ... )
    >>> report["mean_average_precision"]["value"], report["exact_match"]["value"]
    (1.0, 1.0)
    """
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    _check(probabilities, labels, names)
    n, m = labels.shape
    true, said = labels > 0, probabilities >= LIKELY
    members = true.sum(axis=0)
    right = true == said
    own = np.where(true, probabilities, 1 - probabilities)
    losses = -np.log(np.maximum(own, LEAST_PROBABILITY))
    counted = np.hstack([true & said, true, said]).astype(np.float64)
    averaged = np.stack([right.mean(axis=1), losses.mean(axis=1)], axis=1)
    rankings = [rank(probabilities[:, column], true[:, column]) for column in range(m)]

    def figures(times: Array) -> Array:
        """Return [k, 2 m + 2]: average precisions, F1 scores, and the two means over rows."""
        precisions = np.stack([each.average_precision(times) for each in rankings], axis=1)
        scores = _f1(*np.split(times @ counted, 3, axis=1))
        return np.hstack([precisions, scores, averages(times, averaged)])

    count = bootstrap.resamples(n, m)
    values = figures(np.ones((1, n)))[0]
    resampled = bootstrap.estimates(figures, n, count, seed, groups)
    average, f1 = slice(0, m), slice(m, 2 * m)
    return {
        "n": n,
        **bootstrap.counted(groups),
        "mean_average_precision": bootstrap.mean_number(values[average], resampled[:, average], n),
        "f1": bootstrap.mean_number(values[f1], resampled[:, f1], n),
        "exact_match": share(right.all(axis=1), groups),
        "label_accuracy": bootstrap.number(values[-2], resampled[:, -2], n),
        "log_loss": bootstrap.number(values[-1], resampled[:, -1], n),
        "per_label": [
            {
                "label": name,
                "n": int(members[column]),
                "average_precision": bootstrap.number(values[column], resampled[:, column], n),
                "f1": bootstrap.number(values[m + column], resampled[:, m + column], n),
                "precision": share(true[:, column], groups, said[:, column]),
                "recall": share(said[:, column], groups, true[:, column]),
            }
            for column, name in enumerate(names)
        ],
        "absent": [name for name, found in zip(names, members, strict=True) if not found],
        "bootstrap": {"resamples": count, "seed": seed},
    }


def _f1(hits: Array, members: Array, named: Array) -> Array:
    """Return 2 hits / (members + named), NaN where a label has no members."""
    result = np.full_like(hits, np.nan)
    return np.divide(2 * hits, members + named, out=result, where=members > 0)


def _check(probabilities: Array, labels: Array, names: Sequence[str]) -> None:
    if labels.ndim != 2 or probabilities.shape != labels.shape or len(names) != labels.shape[1]:
        raise DataError(
            f"probabilities of shape {list(probabilities.shape)} do not fit labels of shape"
            f" {list(labels.shape)} and {len(names)} names; give [n, m], [n, m] and m"
        )
    if len(labels) == 0:
        raise DataError("no rows to evaluate; give at least one labeled image")
    if not np.isin(labels, (0, 1)).all():
        raise DataError("labels hold other values than 0 and 1; give those")
    off = ~((probabilities >= 0) & (probabilities <= 1)).all(axis=1)
    if off.any():
        row = int(np.flatnonzero(off)[0])
        raise DataError(f"row {row} does not hold probabilities; give sigmoid outputs")
