"""What the linear heads minimize, and its solution at every strength of a path.

Targets and losses are made for a block of rows at a time, so that a million rows of a thousand
classes never lie in memory as a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from topwork.learn.lbfgs import Evaluation, minimize
from topwork.learn.principal import PrincipalAxes, map_blocks, sum_blocks

Array = np.ndarray

POINTS = 3  # solutions that tell where the next one lies
LEAST_CURVATURE = 1e-3  # floor of the Hessian's estimate where nearly every row is fitted


@dataclass(frozen=True)
class Problem:
    """A loss of scores, to be minimized by steps.

    Attributes:
        loss: from the scores [b, m] of a block, which it may overwrite, and the block, to the
            summed losses [m] (or [1]), their derivatives by the scores [b, m] and their summed
            second derivatives [m].
        columns: m.
        separate: whether the columns are independent, with a loss each.
    """

    loss: Callable[[Array, slice], Evaluation]
    columns: int
    separate: bool


def signs_of(labels: Array, classes: int) -> Callable[[slice], Array]:
    """Return the targets ±1 of blocks: a column for each class, or of two the second's alone."""
    columns = np.arange(classes)[-1 if classes == 2 else 0 :]
    return lambda rows: np.where(labels[rows, None] == columns, 1.0, -1.0)


def softmax_problem(labels: Array, classes: int) -> Problem:
    """Cross-entropy of the softmax, for labels [n] that all classes occur in."""

    def loss(scores: Array, rows: slice) -> Evaluation:
        own = np.arange(len(scores)), labels[rows]
        scores -= scores.max(axis=1, keepdims=True)
        wanted = scores[own]
        np.exp(scores, out=scores)
        total = scores.sum(axis=1, keepdims=True)
        total_loss = (np.log(total[:, 0]) - wanted).sum(dtype=np.float64, keepdims=True)
        scores /= total
        bend = scores.sum(axis=0) - np.einsum("ij,ij->j", scores, scores)
        scores[own] -= 1
        return total_loss, scores, bend

    return Problem(loss, classes, separate=False)


def squared_hinge_problem(labels: Array, classes: int) -> Problem:
    """Squared hinge loss of each class against the rest; one decision for two classes."""
    signs_in = signs_of(labels, classes)

    def loss(scores: Array, rows: slice) -> Evaluation:
        signs = signs_in(rows).astype(scores.dtype)
        short = np.maximum(0.0, 1.0 - signs * scores)
        losses = np.einsum("ij,ij->j", short, short)
        return losses, -2 * signs * short, 2.0 * np.count_nonzero(short, axis=0)

    return Problem(loss, 1 if classes == 2 else classes, separate=True)


def logistic_problem(values: Array) -> Problem:
    """Binary cross-entropy of the sigmoid, for each column of values [n, m] in 0 to 1."""

    def loss(scores: Array, rows: slice) -> Evaluation:
        wanted = values[rows]
        small = np.exp(-np.abs(scores))
        losses = np.maximum(scores, 0.0) + np.log1p(small) - wanted * scores
        probabilities = np.where(scores >= 0, 1.0, small) / (1.0 + small)
        bend = np.einsum("ij,ij->j", probabilities, 1.0 - probabilities)
        return losses.sum(axis=0, dtype=np.float64), probabilities - wanted, bend

    return Problem(loss, values.shape[1], separate=True)


def ridge_path(
    axes: PrincipalAxes, codes: Array, targets: Callable[[slice], Array], path: Sequence[float]
) -> Iterator[Array]:
    """Yield the weights [r + 1, m] of least squares at every strength, from one pass over codes."""
    n = len(codes)
    bias = sum_blocks(codes, lambda rows: targets(rows).sum(axis=0, dtype=np.float64)) / n

    def products_in(rows: slice) -> Array:
        return axes.standardized(codes[rows]).T @ (targets(rows) - bias)

    slopes = axes.rotated(sum_blocks(codes, products_in) / n)
    for strength in path:
        yield np.vstack([slopes / (axes.variances + strength / 2)[:, None], bias])


def iterative_path(
    axes: PrincipalAxes, codes: Array, problem: Problem, path: Sequence[float], tolerance: float
) -> Iterator[Array]:
    """Yield the weights [r + 1, m] at every strength.

    Each fit starts where the last three point: as the penalty fades the weights of separable
    classes grow by a nearly constant amount. That saves half of the evaluations.
    """
    coordinates = axes.coordinates(codes)
    start = np.zeros((coordinates.shape[1], problem.columns))
    solved: dict[float, Array] = {}
    for strength in path:
        evaluate = penalized(axes, coordinates, problem, strength)
        if solved:
            start = extrapolated(solved, float(np.log(strength)))
        weights = minimize(evaluate, start, separate=problem.separate, tolerance=tolerance)
        if not problem.separate:  # what classes share changes no probability, but adds to ||W||
            weights -= weights.mean(axis=1, keepdims=True)
        yield weights
        solved[float(np.log(strength))] = weights
        if len(solved) > POINTS:
            del solved[next(iter(solved))]


def extrapolated(solved: dict[float, Array], place: float) -> Array:
    """Return what the polynomial through solutions, by their places, comes to at a place.

    Where that is further beyond the last than the solutions are apart, so much further only.

    >>> extrapolated({0.0: np.array([0.0]), -1.0: np.array([1.0]), -2.0: np.array([4.0])}, -3.0)
    array([9.])
    """
    places = np.array(list(solved))
    place = max(place, places[-1] - np.abs(np.diff(places)).min(initial=np.inf))
    result = np.zeros_like(solved[places[-1]])
    for own, weights in solved.items():
        others = places[places != own]
        result += np.prod((place - others) / (own - others)) * weights
    return result


def penalized(
    axes: PrincipalAxes, coordinates: Array, problem: Problem, strength: float
) -> Callable[[Array], Evaluation]:
    """Return the function that the minimizer asks for values, gradient and diagonal."""
    variances = np.append(axes.variances, 1.0)[:, None]
    penalty = np.append(np.full_like(axes.variances, strength), 0.0)[:, None]
    n = len(coordinates)

    def evaluate(weights: Array) -> Evaluation:
        factors = weights.astype(coordinates.dtype, copy=False)

        def part(rows: slice) -> Evaluation:
            block = coordinates[rows]
            value, slope, bend = problem.loss(block @ factors, rows)
            return value, block.T @ slope, bend

        gradient = penalty * weights
        values = np.einsum("ij,ij->j", gradient, weights) / 2
        if not problem.separate:
            values = values.sum(keepdims=True)
        curvature = np.zeros(weights.shape[1])
        for value, slope, bend in map_blocks(coordinates, part):
            values += value / n
            gradient += slope / n
            curvature += bend / n
        return values, gradient, np.maximum(curvature, LEAST_CURVATURE) * variances + penalty

    return evaluate
