"""A temperature that turns scores into probabilities, and their log-loss.

A head is compared with others at its own temperature, fitted to the images that it is scored on,
so that none loses for being under- or overconfident: that is mended by a division at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from topwork.errors import DataError
from topwork.learn.heads import NEVER

Array = np.ndarray

# A temperature fitted to few rows is noisy: where all of them are right the likeliest one is zero,
# and one wrong row elsewhere then costs any loss. With two rows for two classes this is Platt's
# rule. One row for each of many classes is too much: on 80 images of ten hand signs, 95 % right, it
# left a calibration error of .14, two in all .04 (docs/log.md).
PSEUDO_ROWS = 2
STEPS = 50
PRECISION = 1e-6


def fit_temperature(scores: Array, labels: Array, weights: Array | None = None) -> float:
    """Return the T that makes ``softmax(scores / T)`` likeliest (Guo et al. 2017).

    As in Platt scaling (1999) the labels are softened, by two pseudo-rows spread over all classes.
    Scores of classes that the head never saw (``NEVER``) are left out, and so are rows of such a
    class.

    Args:
        scores: [n, c] floats.
        labels: [n] integers.
        weights: [n] how much each row counts; None for equally. The pseudo-rows stand beside as
            many rows as would tell as much without weights (Kish 1965).

    Raises:
        DataError: if no row is left.

    >>> scores = np.array([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]] * 50)
    >>> labels = np.array([0, 0, 0, 0] * 50)  # right in three of four: ln 3 apart, not 2
    >>> round(fit_temperature(scores, labels), 1)
    1.8
    """
    scores, labels, seen, rows = _seen(scores, labels)
    weights = np.ones(len(labels)) if weights is None else weights[rows]
    mean = partial(np.average, weights=weights)
    shifted = np.where(seen, scores - scores.max(axis=1, keepdims=True), 0.0)
    counts = seen.sum(axis=1)
    means = shifted.sum(axis=1) / counts
    spread = np.sqrt((np.where(seen, shifted - means[:, None], 0.0) ** 2).sum() / counts.sum())
    if not spread > 0:
        return 1.0
    rows_in_effect = weights.sum() ** 2 / np.square(weights).sum()
    softening = PSEUDO_ROWS / (rows_in_effect + PSEUDO_ROWS)
    own = shifted[np.arange(len(labels)), labels]
    wanted = float(mean((1 - softening) * own + softening * means))

    # The derivative by the inverse temperature rises throughout: Newton's steps, kept in a bracket.
    low, high = 1e-4 / spread, 1e5 / spread
    inverse = 1 / spread
    for _ in range(STEPS):
        chances = np.exp(shifted * inverse) * seen
        chances /= chances.sum(axis=1, keepdims=True)
        expected = (chances * shifted).sum(axis=1)
        excess = mean(expected) - wanted
        low, high = (low, inverse) if excess > 0 else (inverse, high)
        bend = mean((chances * shifted**2).sum(axis=1) - expected**2)
        step = inverse - excess / bend if bend > 0 else np.inf
        following = step if low < step < high else np.sqrt(low * high)
        if abs(following - inverse) <= PRECISION * inverse:
            break
        inverse = following
    return float(1 / inverse)


def log_loss(scores: Array, labels: Array, temperature: float) -> float:
    """Return the mean of -ln ``softmax(scores / temperature)`` at the label, in nats.

    Rows of a class that the head never saw are left out, as no head and no strength can help them.

    >>> round(log_loss(np.array([[0.0, 0.0]]), np.array([1]), 1.0), 4)
    0.6931
    """
    scores, labels, *_ = _seen(scores, labels)
    return float(log_losses(scores, labels, temperature).mean())


def tempered_losses(
    kind: str,
    scores: Array,
    targets: Array,
    learned: Sequence[int] | None,
    balance: Array | None = None,
) -> tuple[Array, float]:
    """Return the log-loss of each row at the temperature fitted to all of them, and that.

    Args:
        kind: "classes" or "labels".
        scores: [n, outputs] floats.
        targets: [n] classes, or [n, outputs] labels, 0 or 1.
        learned: the outputs that training rows told something about; the others are left out, and
            with a class its rows. None for all.
        balance: [outputs] how much rows of a class count, or a label where it applies as against
            where it does not; None for equally.

    Returns:
        float64 [m], of several labels their mean, times what each counts (1 on average), and the
        temperature, one for all of them; NaN and 1 where a score is not finite.

    Raises:
        DataError: if no row, or no label, is left.

    >>> losses, temperature = tempered_losses("labels", np.eye(2) * 8 - 4, np.eye(2), None)
    >>> bool((losses > -np.log(1 / (1 + np.exp(-4)))).all()), temperature > 1
    (True, True)
    """
    columns = np.arange(scores.shape[1]) if learned is None else np.array(learned, dtype=np.int64)
    scores = scores[:, columns]
    if kind == "classes":
        rows = np.isin(targets, columns)
        scores, labels = scores[rows], np.searchsorted(columns, targets[rows])
        counting = None if balance is None else balance[columns][labels]
    else:
        counting = None
        if balance is not None:
            counting = np.where(targets[:, columns] > 0, balance[columns], 1.0).ravel()
        scores, labels = as_two_classes(scores, targets[:, columns])
    if not np.isfinite(scores).all():
        return np.full(len(labels) if kind == "classes" else len(targets), np.nan), 1.0
    temperature = fit_temperature(scores, labels, counting)
    losses = log_losses(scores.astype(np.float64), labels, temperature)
    if counting is not None:
        losses *= counting / counting.mean()
    return losses.reshape(-1, 1 if kind == "classes" else len(columns)).mean(axis=1), temperature


def log_losses(scores: Array, labels: Array, temperature: float) -> Array:
    """Return -ln ``softmax(scores / temperature)`` at the label of each row, in nats, [n].

    >>> log_losses(np.array([[0.0, 0.0]]), np.array([1]), 1.0).round(4).tolist()
    [0.6931]
    """
    scaled = scores / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    own: Array = scaled[np.arange(len(labels)), labels]
    return np.log(np.exp(scaled).sum(axis=1)) - own


def as_two_classes(scores: Array, labels: Array) -> tuple[Array, Array]:
    """Return every label of every row as a row of its own with two classes, for the above.

    ``sigmoid(s / T)`` is the second of ``softmax([0, s] / T)``. Labels that the head never saw, or
    never saw missing (a bias of ``NEVER`` or ``-NEVER``), are left out.

    Args:
        scores: [n, labels] floats.
        labels: [n, labels], 0 or 1.

    Returns:
        scores [m, 2], float64, and labels [m], int64.

    >>> as_two_classes(np.array([[3.0, NEVER], [-2.0, NEVER]]), np.array([[1, 0], [0, 0]]))[1]
    array([1, 0])
    """
    seen = np.abs(scores) != -NEVER
    second = scores[seen].astype(np.float64)
    return np.stack([np.zeros_like(second), second], axis=1), labels[seen].astype(np.int64)


def _seen(scores: Array, labels: Array) -> tuple[Array, Array, Array, Array]:
    """Return scores (float64) and labels of rows whose class was seen, what was, and which rows."""
    seen = scores != NEVER
    rows = seen[np.arange(len(labels)), labels]
    if not rows.any():
        raise DataError(
            "no held-out row is of a class that the other rows have too; add images of the classes"
        )
    return scores[rows].astype(np.float64), labels[rows], seen[rows], rows
