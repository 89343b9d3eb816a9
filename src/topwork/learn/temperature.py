"""A temperature that turns scores into probabilities, and their log-loss."""

from __future__ import annotations

import numpy as np

from topwork.errors import DataError
from topwork.learn.heads import NEVER

Array = np.ndarray

STEPS = 50
PRECISION = 1e-6


def fit_temperature(scores: Array, labels: Array) -> float:
    """Return the T that makes ``softmax(scores / T)`` likeliest (Guo et al. 2017).

    As in Platt scaling (1999) the labels are softened by one pseudo-row for each class, so that T
    stays above zero even where every row is right. Scores of classes that the head never saw
    (``NEVER``) are left out, and so are rows of such a class.

    Args:
        scores: [n, c] floats.
        labels: [n] integers.

    Raises:
        DataError: if no row is left.

    >>> scores = np.array([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]] * 50)
    >>> labels = np.array([0, 0, 0, 0] * 50)  # right in three of four: ln 3 apart, not 2
    >>> round(fit_temperature(scores, labels), 1)
    1.8
    """
    scores, labels, seen = _seen(scores, labels)
    shifted = np.where(seen, scores - scores.max(axis=1, keepdims=True), 0.0)
    counts = seen.sum(axis=1)
    means = shifted.sum(axis=1) / counts
    spread = np.sqrt((np.where(seen, shifted - means[:, None], 0.0) ** 2).sum() / counts.sum())
    if not spread > 0:
        return 1.0
    softening = scores.shape[1] / (len(labels) + scores.shape[1])
    own = shifted[np.arange(len(labels)), labels]
    wanted = float(((1 - softening) * own + softening * means).mean())

    # The derivative by the inverse temperature rises throughout: Newton's steps, kept in a bracket.
    low, high = 1e-4 / spread, 1e5 / spread
    inverse = 1 / spread
    for _ in range(STEPS):
        weights = np.exp(shifted * inverse) * seen
        weights /= weights.sum(axis=1, keepdims=True)
        expected = (weights * shifted).sum(axis=1)
        excess = expected.mean() - wanted
        low, high = (low, inverse) if excess > 0 else (inverse, high)
        bend = ((weights * shifted**2).sum(axis=1) - expected**2).mean()
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
    scores, labels, _ = _seen(scores, labels)
    scaled = scores / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    own = scaled[np.arange(len(labels)), labels]
    return float((np.log(np.exp(scaled).sum(axis=1)) - own).mean())


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


def _seen(scores: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Return scores (float64) and labels of the rows whose class was seen, and which were seen."""
    seen = scores != NEVER
    rows = seen[np.arange(len(labels)), labels]
    if not rows.any():
        raise DataError(
            "no held-out row is of a class that the other rows have too; add images of the classes"
        )
    return scores[rows].astype(np.float64), labels[rows], seen[rows]
