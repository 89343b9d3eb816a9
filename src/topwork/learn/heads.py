"""Linear heads on codes: multinomial softmax, linear SVM and ridge, over a path of strengths.

All three are linear models with an L2 penalty on the weights and none on the bias, so rotating the
codes changes nothing (Hastie & Tibshirani 2004, "Efficient quadratic regularization for expression
arrays"). The codes are therefore rotated once onto their principal axes: with fewer rows than
columns the problem shrinks to the span of the rows, exactly; ridge becomes a division; and the two
iterative heads start from a Hessian that is close to diagonal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from topwork.errors import DataError, UsageError, did_you_mean
from topwork.learn.lbfgs import Evaluation, minimize
from topwork.learn.principal import PrincipalAxes, blocks, principal_axes

Array = np.ndarray

KINDS = ("softmax", "svm", "ridge")

# Where the best strength lay on codes of MobileNetV2 and of earlier layers (32 to 1280 columns, 244
# to 1546 rows, 2 to 12 classes), with room on both sides; the stronger ones are the cheap ones.
STRENGTHS: dict[str, tuple[float, ...]] = {
    "softmax": tuple(10.0 ** np.linspace(0, -6, 13)),
    "svm": tuple(10.0 ** np.linspace(0, -4, 9)),
    "ridge": tuple(10.0 ** np.linspace(0, -4.75, 20)),
}

NEVER = -1e4  # the bias of a class without rows: finite in half precision, probability zero
LEAST_CURVATURE = 1e-3  # floor of the Hessian's estimate where nearly every row is fitted


@dataclass(frozen=True)
class LinearHead:
    """A fitted linear head: ``scores = codes @ weight.T + bias``, on the codes as they come.

    Attributes:
        kind: ``"softmax"``, ``"svm"`` or ``"ridge"``.
        weight: [classes, d] float32, the standardization of the codes folded in.
        bias: [classes] float32.
        strength: the strength of the penalty it was fitted with (see :func:`fit_path`).
        temperature: scores are divided by it before the softmax that makes them probabilities.

    A decision between two classes (SVM, ridge) is kept as two rows, minus and plus half of it.

    >>> head = LinearHead("svm", np.float32([[1], [-1]]), np.zeros(2, np.float32), 0.1, 2.0)
    >>> head.probabilities(np.float32([[0.0], [30.0]])).round(3).tolist()
    [[0.5, 0.5], [1.0, 0.0]]
    """

    kind: str
    weight: Array
    bias: Array
    strength: float
    temperature: float = 1.0

    def scores(self, codes: Array) -> Array:
        """Return the scores [n, classes], float32, of codes [n, d]; no temperature in them."""
        return np.asarray(codes, dtype=np.float32) @ self.weight.T + self.bias

    def probabilities(self, codes: Array) -> Array:
        """Return ``softmax(scores / temperature)`` [n, classes], float64."""
        return softmax(self.scores(codes), self.temperature)

    def folded(self) -> LinearHead:
        """Return the same head with the temperature inside weight and bias, and 1 in its place.

        This is the linear layer to save: a plain softmax of its scores is the probabilities, and
        the order of the classes is unchanged.
        """
        weight = (self.weight / self.temperature).astype(np.float32)
        bias = (self.bias / self.temperature).astype(np.float32)
        return replace(self, weight=weight, bias=bias, temperature=1.0)


def softmax(scores: Array, temperature: float = 1.0) -> Array:
    """Return ``exp(scores / temperature)`` with each row divided by its sum: [n, c] float64.

    >>> softmax(np.array([[0.0, np.log(3)]])).tolist()
    [[0.25, 0.75]]
    """
    result = np.asarray(scores, dtype=np.float64) / temperature
    result -= result.max(axis=1, keepdims=True)
    np.exp(result, out=result)
    result /= result.sum(axis=1, keepdims=True)
    return result


def fit_head(
    codes: Array, labels: Array, class_count: int, *, kind: str = "softmax", strength: float
) -> LinearHead:
    """Fit one head at one strength; see :func:`fit_path`.

    >>> codes = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> head = fit_head(codes, np.array([0, 0, 1, 1]), 2, kind="ridge", strength=1e-3)
    >>> head.scores(codes).argmax(axis=1).tolist()
    [0, 0, 1, 1]
    """
    return next(fit_path(codes, labels, class_count, kind=kind, strengths=[strength]))


def fit_path(
    codes: Array,
    labels: Array,
    class_count: int,
    *,
    kind: str,
    strengths: Sequence[float],
    tolerance: float = 1e-8,
) -> Iterator[LinearHead]:
    """Fit heads of one kind, from the strongest penalty to the weakest, each when it is asked for.

    Each column of the codes is standardized with its own mean and (population) standard deviation,
    and divided by the square root of the number of columns that vary. Rows z then have a mean
    squared length of one, so that a strength means the same for any number of rows or columns.
    With f = W z + b, the objective over n rows is

    - softmax: mean of -log softmax(f)[label] + strength/2 ||W||², a row of W for each class;
    - svm: for each class against the rest, t = ±1: mean of max(0, 1 - t f)² + strength/2 ||w||²;
    - ridge: for each class, t = ±1: mean of (f - t)² + strength/2 ||w||².

    On the same z this is scikit-learn's ``LogisticRegression(C=1 / (n * strength))`` (with two
    classes C is twice that, for it keeps one row and we two), ``LinearSVC(C=1 / (n * strength))``
    with an unpenalized intercept, and ``Ridge(alpha=n * strength / 2)``. SVM and ridge make one
    decision for two classes.

    Args:
        codes: [n, d] floats, finite.
        labels: [n] integers from 0 to class_count - 1.
        class_count: rows of the heads. A class without codes gets a bias that it never wins with.
        kind: ``"softmax"``, ``"svm"`` or ``"ridge"``.
        strengths: positive numbers, in any order; the heads come strongest first.
        tolerance: how far above the minimum an objective may stay, as a fraction of it (an
            estimate: at 1e-8 less than 1e-6 was measured). Ridge is exact.

    Raises:
        UsageError: for an unknown kind or a strength that is not positive.
        DataError: for codes and labels that cannot be used, or fewer than two classes with rows.
    """
    codes, labels = np.asarray(codes), np.asarray(labels)
    check_kind(kind)
    check_rows(codes, labels, class_count)
    if not strengths or not all(0 < strength < np.inf for strength in strengths):
        raise UsageError(f"strengths {list(strengths)} must be positive numbers; give at least one")
    present, own = np.unique(labels, return_inverse=True)
    if len(present) < 2:
        raise DataError("a head needs rows of at least two classes; add images of another class")
    axes = principal_axes(codes)
    path = sorted(strengths, reverse=True)
    if kind == "ridge":
        solutions = _ridge(axes, codes, own, path)
    else:
        solutions = _iterative(axes, codes, own, kind, path, tolerance)
    for strength, weights in zip(path, solutions, strict=True):
        yield _head(axes, weights, present, class_count, kind, strength)


def check_kind(kind: str) -> None:
    """Raise UsageError unless there is such a head."""
    if kind not in KINDS:
        hint = did_you_mean(kind, KINDS) or f"; choose one of {', '.join(KINDS)}"
        raise UsageError(f"unknown kind of head {kind!r}{hint}")


def check_rows(codes: Array, labels: Array, class_count: int) -> None:
    """Raise DataError unless codes are [n, d] and labels [n] from 0 to class_count - 1."""
    if codes.ndim != 2 or labels.shape != codes.shape[:1]:
        raise DataError(
            f"codes of shape {list(codes.shape)} do not fit labels of shape {list(labels.shape)};"
            " give [n, d] and [n]"
        )
    if len(labels) and (labels.min() < 0 or labels.max() >= class_count):
        raise DataError(
            f"labels run from {labels.min()} to {labels.max()};"
            f" give numbers from 0 to {class_count - 1}"
        )


def _ridge(
    axes: PrincipalAxes, codes: Array, labels: Array, path: Sequence[float]
) -> Iterator[Array]:
    """Yield the weights [r + 1, m] at every strength, all from one pass over the codes."""
    products, bias = np.float64(0), np.float64(0)
    columns = np.arange(labels.max() + 1)
    for rows in blocks(len(labels)):
        signs = _signs(labels[rows], columns)
        products = products + axes.standardized(codes[rows]).T @ signs / len(labels)
        bias = bias + signs.sum(axis=0) / len(labels)
    slopes = axes.directions.T @ products
    for strength in path:
        yield np.vstack([slopes / (axes.variances + strength / 2)[:, None], bias])


def _iterative(
    axes: PrincipalAxes,
    codes: Array,
    labels: Array,
    kind: str,
    path: Sequence[float],
    tolerance: float,
) -> Iterator[Array]:
    """Yield the weights [r + 1, m] at every strength.

    Each fit starts where the last two point, on the logarithmic scale of the strength: as the
    penalty fades the weights of separable classes grow by a nearly constant amount. That saves
    a third of the evaluations.
    """
    rotated = axes.coordinates(codes)
    classes = labels.max() + 1
    columns = 1 if kind == "svm" and classes == 2 else classes
    start = np.zeros((rotated.shape[1], columns))
    solved: list[Array] = []
    for index, strength in enumerate(path):
        if len(solved) == 2:
            before, last = solved
            gaps = np.diff(np.log(path[index - 2 : index + 1]))
            ratio = gaps[1] / gaps[0] if gaps[0] else 0.0
            start = last + min(ratio, 1.0) * (last - before)
        evaluate = _objective(axes, rotated, labels, kind, strength)
        weights = minimize(evaluate, start, separate=kind == "svm", tolerance=tolerance)
        if kind == "softmax":  # what the classes share changes no probability, but adds to ||W||
            weights -= weights.mean(axis=1, keepdims=True)
        yield weights
        start, solved = weights, [*solved[-1:], weights]


def _objective(
    axes: PrincipalAxes, rotated: Array, labels: Array, kind: str, strength: float
) -> Callable[[Array], Evaluation]:
    """Return the function that the minimizer asks for values, gradient and diagonal."""
    loss = _softmax_loss if kind == "softmax" else _squared_hinge_loss
    variances = np.append(axes.variances, 1.0)[:, None]
    penalty = np.append(np.full_like(axes.variances, strength), 0.0)[:, None]
    n = len(labels)

    def evaluate(weights: Array) -> Evaluation:
        gradient = penalty * weights
        values = np.einsum("ij,ij->j", gradient, weights) / 2
        if loss is _softmax_loss:
            values = values.sum(keepdims=True)
        curvature = np.zeros(weights.shape[1])
        for rows in blocks(n):
            block = rotated[rows].astype(np.float64, copy=False)
            value, slope, bend = loss(block @ weights, labels[rows])
            values += value / n
            gradient += block.T @ slope / n
            curvature += bend / n
        return values, gradient, np.maximum(curvature, LEAST_CURVATURE) * variances + penalty

    return evaluate


def _softmax_loss(scores: Array, labels: Array) -> Evaluation:
    """Return the summed loss [1], its derivatives by the scores [b, c] and second ones [c]."""
    own = np.arange(len(labels)), labels
    scores -= scores.max(axis=1, keepdims=True)
    loss = -scores[own].sum(keepdims=True)
    np.exp(scores, out=scores)
    total = scores.sum(axis=1, keepdims=True)
    loss += np.log(total).sum()
    scores /= total
    bend = scores.sum(axis=0) - np.einsum("ij,ij->j", scores, scores)
    scores[own] -= 1
    return loss, scores, bend


def _squared_hinge_loss(scores: Array, labels: Array) -> Evaluation:
    """Return the summed losses [m], their derivatives by the scores [b, m] and second ones [m]."""
    signs = _signs(labels, np.arange(max(2, scores.shape[1])))
    short = np.maximum(0.0, 1.0 - signs * scores)
    losses = np.einsum("ij,ij->j", short, short)
    return losses, -2 * signs * short, 2.0 * np.count_nonzero(short, axis=0)


def _signs(labels: Array, classes: Array) -> Array:
    """Return targets ±1: a column for each class, or the second class's alone if there are two."""
    signs = np.where(labels[:, None] == classes, 1.0, -1.0)
    return signs[:, 1:] if len(classes) == 2 else signs


def _head(
    axes: PrincipalAxes,
    weights: Array,
    present: Array,
    class_count: int,
    kind: str,
    strength: float,
) -> LinearHead:
    """Rotate and scale weights [r + 1, m] back, and give every class its row."""
    if weights.shape[1] < len(present):
        weights = weights * [-0.5, 0.5]
    rows = (axes.directions @ weights[:-1]).T * axes.scale
    weight = np.zeros((class_count, len(axes.mean)), dtype=np.float32)
    bias = np.full(class_count, NEVER, dtype=np.float32)
    weight[present] = rows
    bias[present] = weights[-1] - rows @ axes.mean
    return LinearHead(kind, weight, bias, float(strength))
