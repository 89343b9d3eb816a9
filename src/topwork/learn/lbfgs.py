"""Limited-memory BFGS for linear models, in NumPy and float64.

Fitting a head is a small convex problem that is solved thousands of times (every depth, fold and
strength), so it has its own minimizer: about ten array operations per step, started from an
estimate of the Hessian's diagonal, and able to solve many independent problems side by side (one
column of weights each, as one-versus-rest has them) with a step length of its own for each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

Array = np.ndarray
Evaluation = tuple[Array, Array, Array]

MEMORY = 10
MOST_STEPS = 1000
MOST_HALVINGS = 20
ENOUGH_DECREASE = 1e-4


def minimize(
    evaluate: Callable[[Array], Evaluation],
    start: Array,
    *,
    separate: bool,
    tolerance: float,
) -> Array:
    """Return the minimum of a smooth convex function, near enough.

    The search direction is that of Nocedal (1980), with the inverse of the Hessian's estimated
    diagonal as its first guess; the step is halved or more until it satisfies Armijo's condition,
    and pairs of no curvature are passed over.

    Args:
        evaluate: maps weights [p, m] to the values [m] (or [1]), the gradient [p, m] and a positive
            estimate of the Hessian's diagonal [p, m].
        start: weights [p, m] to start from, float64.
        separate: whether the columns are m independent problems with a value each; otherwise
            they are one problem with one value.
        tolerance: stop when the decrease still expected is below this fraction of the value.

    >>> target = np.array([[1.0], [-2.0]])
    >>> def bowl(weights):
    ...     gap = weights - target
    ...     return 1 + (gap**2).sum(axis=0), 2 * gap, np.full_like(gap, 2.0)
    >>> minimize(bowl, np.zeros((2, 1)), separate=False, tolerance=1e-12).ravel().tolist()
    [1.0, -2.0]
    """
    apart = separate and start.shape[1] > 1

    def inner(left: Array, right: Array) -> Array:
        if apart:
            return np.einsum("ij,ij->j", left, right)
        return np.array([np.vdot(left, right)])

    pairs: deque[tuple[Array, Array, Array]] = deque(maxlen=MEMORY)
    weights = start
    values, gradient, diagonal = evaluate(weights)
    moving = np.ones_like(values, dtype=bool)
    for _ in range(MOST_STEPS):
        direction = -_inverse_hessian_times(gradient, pairs, diagonal, inner)
        slope = inner(gradient, direction)
        moving &= -slope / 2 > tolerance * values
        if not moving.any():
            break
        length, evaluation = _search(evaluate, weights, direction, values, slope, moving)
        moving &= length > 0
        step = length * direction
        weights = weights + step
        change = evaluation[1] - gradient
        values, gradient, diagonal = evaluation
        pairs.append((step, change, _inverse(inner(step, change))))
    return weights


def _inverse_hessian_times(
    gradient: Array,
    pairs: deque[tuple[Array, Array, Array]],
    diagonal: Array,
    inner: Callable[[Array, Array], Array],
) -> Array:
    """Multiply by the inverse Hessian that the last steps tell of (the two-loop recursion)."""
    result = gradient.copy()
    shares = []
    for step, change, inverse in reversed(pairs):
        share = inverse * inner(step, result)
        result -= share * change
        shares.append(share)
    if pairs:
        _, change, inverse = pairs[-1]
        scale = _inverse(inverse * inner(change, change / diagonal))
        result *= np.where(scale > 0, scale, 1.0)
    result /= diagonal
    for (step, change, inverse), share in zip(pairs, reversed(shares), strict=True):
        result += step * (share - inverse * inner(change, result))
    return result


def _search(
    evaluate: Callable[[Array], Evaluation],
    weights: Array,
    direction: Array,
    values: Array,
    slope: Array,
    moving: Array,
) -> tuple[Array, Evaluation]:
    """Shorten the step of each problem until its value falls enough; 0 where it never does."""
    length = moving.astype(np.float64)
    for _ in range(MOST_HALVINGS):
        evaluation = evaluate(weights + length * direction)
        rise = evaluation[0] - values
        refused = moving & ~(rise <= ENOUGH_DECREASE * length * slope)
        if not refused.any():
            return length, evaluation
        with np.errstate(all="ignore"):
            minimum = -slope * length / (2 * (rise - slope * length))
        shrink = np.clip(np.nan_to_num(minimum, nan=0.1), 0.1, 0.5)
        length = np.where(refused, length * shrink, length)
    length = np.where(refused, 0.0, length)
    return length, evaluate(weights + length * direction)


def _inverse(values: Array) -> Array:
    """Return 1 / values, and 0 where a value is not positive: such a pair teaches nothing."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)
