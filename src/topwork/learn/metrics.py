"""How good a classifier is on labeled rows, each number with its count and 95 % interval.

- Proportions (accuracy, recall, precision): Wilson's score interval (Wilson 1927).
- Balanced accuracy, the mean of the classes' recalls: from Wilson limits in two ways (see
  `mean_proportion`). They keep their width where every recall is 100 % and a resampled interval
  would shrink to a point.
- Log-loss: percentile bootstrap over rows.
- Area under the ROC curve and average precision: the same. Where the ranking is perfect it is so in
  every resample; the lower limit is then Wilson's for as many rows as the rarer kind has.
- Calibration error: value ± 1.96 bootstrap standard errors, the lower limit less the bootstrap's
  estimate of the bias too, within [0, 1]. Noise alone makes the bins' errors positive, more so in
  a resample, so that percentiles would leave out zero where the probabilities are perfect.

Rows that belong together tell less than as many that do not. Wilson's n is divided by the design
effect then, and a bootstrap draws groups.

Classes are told apart here; for several labels see `label_metrics`, for numbers `number_metrics`.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from scipy.special import stdtrit

from topwork.errors import DataError
from topwork.learn import bootstrap
from topwork.learn.ranking import rank

Array = np.ndarray

NORMAL_QUANTILE = NormalDist().inv_cdf((1 + bootstrap.CONFIDENCE) / 2)
BINS = 15
LEAST_PROBABILITY = float(np.finfo(np.float64).eps)
SUM_TOLERANCE = 1e-3  # half precision is good to this


def evaluate(
    probabilities: Array,
    labels: Array,
    classes: Sequence[str],
    *,
    seed: int = 0,
    groups: Array | None = None,
) -> dict[str, Any]:
    """Compare predicted probabilities with the labels; return plain data for a record.

    Each number is ``{"value", "interval": [low, high], "n"}``; value and interval are None where n
    is 0. Classes without rows are named under ``absent`` and take no part in balanced accuracy.
    Log-loss is the mean of -ln p(label), p no less than 2.2e-16. Calibration error is that of the
    predicted class: over 15 bins of its probability, equally wide (Guo et al. 2017), the
    distance between the share of correct rows and the mean probability, averaged over the bins by
    their rows. In the confusion matrix a row is a true class and a column a predicted one.
    With two classes there are also ``roc_auc`` and ``average_precision``, of the second one.

    Args:
        probabilities: [n, c] floats, rows sum to one.
        labels: [n] integers from 0 to c - 1.
        classes: c names.
        seed: of the bootstrap.
        groups: [n] what belongs together, as photos of one person do; how many there are is then
            under ``groups``. None if each row stands alone.

    Raises:
        DataError: for no rows, shapes or labels that do not fit, or numbers that are no
            probabilities (NaN and infinity among them).

    >>> report = evaluate(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1]), ["ant", "bee"])
    >>> report["accuracy"]
    {'value': 1.0, 'interval': [0.3423802275066532, 1.0], 'n': 2}
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    _check(probabilities, labels, classes)
    n, c = probabilities.shape
    predicted = probabilities.argmax(axis=1)
    confusion = np.bincount(labels * c + predicted, minlength=c * c).reshape(c, c)
    correct, members = np.diagonal(confusion), confusion.sum(axis=1)
    present = members > 0
    rows, right = np.arange(n), predicted == labels
    # Each row's part in how far the mean recall lies from the true one.
    parts = (right - (correct / np.maximum(1, members))[labels]) / members[labels]
    losses = -np.log(np.maximum(probabilities[rows, labels], LEAST_PROBABILITY, dtype=np.float64))
    confidence = probabilities[rows, predicted].astype(np.float64)
    return {
        "n": n,
        **bootstrap.counted(groups),
        "accuracy": share(right, groups),
        "balanced_accuracy": mean_proportion(
            correct[present], members[present], design_effect(parts, groups)
        ),
        **_losses_and_calibration(losses, confidence, right, seed, groups),
        **(_ranked(probabilities[:, 1], labels, seed, groups) if c == 2 else {}),
        "per_class": [
            {
                "class": name,
                "recall": share(right, groups, labels == index),
                "precision": share(right, groups, predicted == index),
            }
            for index, name in enumerate(classes)
        ],
        "absent": [
            name for name, is_present in zip(classes, present, strict=True) if not is_present
        ],
        "confusion": {"classes": list(classes), "counts": confusion.tolist()},
    }


def wilson(successes: float, n: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a proportion, n > 0, which need not be whole.

    >>> low, high = wilson(146, 153)
    >>> f"{low:.3f} {high:.3f}"
    '0.909 0.978'
    """
    z2 = NORMAL_QUANTILE**2
    share = successes / n
    center = share + z2 / (2 * n)
    half = NORMAL_QUANTILE * (share * (1 - share) / n + z2 / (4 * n * n)) ** 0.5
    low, high = (center - half) / (1 + z2 / n), (center + half) / (1 + z2 / n)
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)


def design_effect(residuals: Array, groups: Array | None) -> float:
    """Return how many rows tell no more than one would that belongs to no other (Kish 1965).

    It is the square of a mean's standard error by the sums of the groups over that of independent
    rows, at least 1, times that of Student's t quantile over the normal one: few groups tell little
    about how much groups differ. At most it is n, as for one group alone, of whose likeness to
    others nothing is known: then all rows count as one.

    Args:
        residuals: [n] how far each row lies from the mean, times its weight in it.
        groups: [n] what belongs together; None if each row stands alone.

    >>> design_effect(np.array([0.5, 0.5, -0.5, -0.5]), None)
    1.0
    >>> people = np.arange(200) // 2
    >>> round(design_effect(np.where(people < 50, 0.5, -0.5), people), 2)  # photos in equal pairs
    2.07
    """
    members = bootstrap.shared(groups)
    if members is None:
        return 1.0
    n, sums = len(members), np.bincount(members, weights=residuals)
    count = len(sums)
    if count == 1:
        return float(n)
    alone = float(residuals @ residuals)
    ratio = count / (count - 1) * float(sums @ sums) / alone if alone > 0 else 1.0
    quantile = float(stdtrit(count - 1, (1 + bootstrap.CONFIDENCE) / 2))
    return min(max(ratio, 1.0) * (quantile / NORMAL_QUANTILE) ** 2, float(n))


def share(right: Array, groups: Array | None, among: Array | None = None) -> dict[str, Any]:
    """Return value, interval and n of the share of rows that are right.

    Args:
        right: [n] bool.
        groups: [n] what belongs together; None if each row stands alone.
        among: [n] bool, the rows to look at; None for all.

    >>> share(np.array([True, False, True]), None, np.array([True, False, True]))["value"]
    1.0
    """
    if among is not None:
        right, groups = right[among], None if groups is None else np.asarray(groups)[among]
    n, successes = len(right), int(right.sum())
    effect = design_effect(right - successes / n, groups) if n else 1.0
    return proportion(successes, n, effect)


def proportion(successes: int, n: int, effect: float = 1.0) -> dict[str, Any]:
    """Return value, Wilson interval and n of a proportion; None for both where n is 0.

    The interval is that of n / effect rows (see `design_effect`).

    >>> proportion(0, 0)
    {'value': None, 'interval': None, 'n': 0}
    """
    if n == 0:
        return {"value": None, "interval": None, "n": 0}
    return {
        "value": successes / n,
        "interval": list(wilson(successes / effect, n / effect)),
        "n": n,
    }


def mean_proportion(successes: Array, counts: Array, effect: float = 1.0) -> dict[str, Any]:
    """Return the unweighted mean of independent proportions with its interval: of two the union.

    - MOVER (Zou & Donner 2008): with shares p_i in [l_i, u_i] by Wilson, k of them, the mean less
      sqrt(sum (p_i - l_i)²) / k, and plus sqrt(sum (u_i - p_i)²) / k. With many shares of few rows
      it covers too seldom, as each p_i lies far from the middle of its interval.
    - Wilson's for the mean itself, of k² / sum(1 / m_i) rows: as many as would know it as well if
      the shares were equal. Where they are not, it covers too seldom.

    Args:
        successes: [k] how many of the rows of each are right.
        counts: [k] how many rows m_i each has.
        effect: how many rows tell no more than one (see `design_effect`).

    >>> mean_proportion(np.array([50, 50]), np.array([50, 50]))["interval"][0] > 0.94
    True
    """
    limits = np.array(
        [wilson(s / effect, m / effect) for s, m in zip(successes, counts, strict=True)]
    )
    shares = successes / counts
    mean = float(shares.mean())
    below = float(np.linalg.norm(shares - limits[:, 0])) / len(shares)
    above = float(np.linalg.norm(limits[:, 1] - shares)) / len(shares)
    rows = float(len(shares) ** 2 / (effect / counts).sum())
    low, high = wilson(mean * rows, rows)
    interval = [max(min(mean - below, low), 0.0), min(max(mean + above, high), 1.0)]
    return {"value": mean, "interval": interval, "n": int(counts.sum())}


def _losses_and_calibration(
    losses: Array, confidence: Array, correct: Array, seed: int, groups: Array | None
) -> dict[str, Any]:
    """Return log-loss and calibration error, with intervals from the same resampled rows."""
    n = len(losses)
    # Half-open bins (a, b]; the rows are sorted by bin so that sums over bins are sums of runs.
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    order = np.argsort(bins, kind="stable")
    starts = np.flatnonzero(np.diff(bins[order], prepend=-1))
    losses, gaps = losses[order], (correct - confidence)[order]
    groups = None if groups is None else np.asarray(groups)[order]
    log_loss = float(losses.mean())
    error = float(np.abs(np.add.reduceat(gaps, starts)).sum()) / n
    count = bootstrap.resamples(n)

    def figures(times: Array) -> Array:
        sums = np.add.reduceat(times * gaps, starts, axis=1)
        both = np.stack([times @ losses, np.abs(sums).sum(axis=1)], axis=1)
        return both / times.sum(axis=1, keepdims=True)

    means, errors = bootstrap.estimates(figures, n, count, seed, groups).T
    half = NORMAL_QUANTILE * float(errors.std(ddof=1))
    bias = max(float(errors.mean()) - error, 0.0)
    return {
        "log_loss": bootstrap.number(log_loss, means, n),
        "calibration_error": {
            "value": error,
            "interval": [max(error - bias - half, 0.0), min(error + half, 1.0)],
            "n": n,
            "bins": BINS,
        },
        "bootstrap": {"resamples": count, "seed": seed},
    }


def _ranked(scores: Array, labels: Array, seed: int, groups: Array | None) -> dict[str, Any]:
    """Return how well the scores [n] rank the second class above the first."""
    n, positives = len(labels), int(labels.sum())
    ranking = rank(scores, labels)

    def figures(times: Array) -> Array:
        return np.stack([ranking.area(times), ranking.average_precision(times)], axis=1)

    values = figures(np.ones((1, n)))[0]
    resampled = bootstrap.estimates(figures, n, bootstrap.resamples(n), seed, groups)
    area = bootstrap.number(values[0], resampled[:, 0], n)
    precision = bootstrap.number(values[1], resampled[:, 1], n)
    return {
        "roc_auc": _widened(area, min(positives, n - positives)),
        "average_precision": _widened(precision, positives),
    }


def _widened(number: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return a number with the lower limit of a share of so many rows, if it is 1."""
    if number["value"] != 1.0:
        return number
    return {**number, "interval": [wilson(rows, rows)[0], 1.0]}


def _check(probabilities: Array, labels: Array, classes: Sequence[str]) -> None:
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise DataError(
            f"probabilities of shape {list(probabilities.shape)} do not fit labels of shape"
            f" {list(labels.shape)}; give [n, classes] and [n]"
        )
    n, c = probabilities.shape
    if len(classes) != c:
        raise DataError(f"{len(classes)} class names for {c} columns; give one name for each")
    if n == 0:
        raise DataError("no rows to evaluate; give at least one labeled image")
    if labels.min() < 0 or labels.max() >= c:
        raise DataError(
            f"labels run from {labels.min()} to {labels.max()}; give numbers from 0 to {c - 1}"
        )
    off = ~(np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1) <= SUM_TOLERANCE)
    off |= ~(probabilities.min(axis=1) >= 0)
    if off.any():
        raise DataError(
            f"row {int(np.flatnonzero(off)[0])} does not hold probabilities (NaN, negative, or not"
            " of sum one); give softmax outputs"
        )
