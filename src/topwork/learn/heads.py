"""Linear heads on codes, over a path of strengths: softmax, SVM, ridge, sigmoid, regression.

All are linear models with an L2 penalty on the weights and none on the bias, so rotating the
codes changes nothing (Hastie & Tibshirani 2004, "Efficient quadratic regularization for expression
arrays"). The codes are therefore rotated once onto their principal axes: with fewer rows than
columns the problem shrinks to the span of the rows, exactly; ridge becomes a division; and the
iterative heads start from a Hessian that is close to diagonal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from topwork.errors import DataError, UsageError, did_you_mean
from topwork.learn.principal import PrincipalAxes, principal_axes
from topwork.learn.problems import (
    iterative_path,
    logistic_problem,
    ridge_path,
    signs_of,
    softmax_problem,
    squared_hinge_problem,
)
from topwork.network.answers import sigmoid, softmax

Array = np.ndarray

CLASS_KINDS = ("softmax", "svm", "ridge")
KINDS = (*CLASS_KINDS, "sigmoid", "regression")

# Where the best strength lay on codes of MobileNetV2 and of earlier layers (32 to 1280 columns, 244
# to 1546 rows, 2 to 12 classes), with room on both sides; the stronger ones are the cheap ones.
STRENGTHS: dict[str, tuple[float, ...]] = {
    "softmax": tuple(10.0 ** np.linspace(0, -6, 13)),
    "svm": tuple(10.0 ** np.linspace(0, -4, 9)),
    "ridge": tuple(10.0 ** np.linspace(0, -4.75, 20)),
    "sigmoid": tuple(10.0 ** np.linspace(0, -6, 13)),
    "regression": tuple(10.0 ** np.linspace(1, -6, 29)),
}

NEVER = -1e4  # the bias of a class without rows: finite in half precision, probability zero


@dataclass(frozen=True)
class LinearHead:
    """A fitted linear head: ``scores = codes @ weight.T + bias``, on the codes as they come.

    Attributes:
        kind: one of `KINDS`.
        weight: [outputs, d] float32, the standardization of the codes folded in.
        bias: [outputs] float32.
        strength: the strength of the penalty it was fitted with (see :func:`fit_path`).
        temperature: scores are divided by it before they become probabilities.

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
        """Return the scores [n, outputs], float32, of codes [n, d]; no temperature in them."""
        return np.asarray(codes, dtype=np.float32) @ self.weight.T + self.bias

    def probabilities(self, codes: Array) -> Array:
        """Return ``softmax(scores / temperature)``, or for "sigmoid" the sigmoid of each column.

        Float64 [n, outputs].

        Raises:
            UsageError: for a regression.
        """
        if self.kind == "regression":
            raise UsageError("a regression has no probabilities; take its scores")
        link = sigmoid if self.kind == "sigmoid" else softmax
        return link(self.scores(codes), self.temperature)

    def folded(self) -> LinearHead:
        """Return the same head with the temperature inside weight and bias, and 1 in its place.

        This is the linear layer to save: a plain softmax (or sigmoid) of its scores is the
        probabilities, and the order of the classes is unchanged.
        """
        weight = (self.weight / self.temperature).astype(np.float32)
        bias = (self.bias / self.temperature).astype(np.float32)
        return replace(self, weight=weight, bias=bias, temperature=1.0)


def fit_head(
    codes: Array, targets: Array, outputs: int, *, kind: str = "softmax", strength: float
) -> LinearHead:
    """Fit one head at one strength; see :func:`fit_path`.

    >>> codes = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> head = fit_head(codes, np.array([0, 0, 1, 1]), 2, kind="ridge", strength=1e-3)
    >>> head.scores(codes).argmax(axis=1).tolist()
    [0, 0, 1, 1]
    """
    return next(fit_path(codes, targets, outputs, kind=kind, strengths=[strength]))


def fit_path(
    codes: Array,
    targets: Array,
    outputs: int,
    *,
    kind: str,
    strengths: Sequence[float],
    tolerance: float = 1e-8,
) -> Iterator[LinearHead]:
    """Fit heads of one kind, from the strongest penalty to the weakest, each when it is asked for.

    Each column of the codes is centered and divided by its (population) standard deviation, or by a
    tenth of the root mean square of all columns' where that is more: a column that is nearly always
    zero would else make outliers. All are then divided by one number, so that rows z have a mean
    squared length of one and a strength means the same for any number of rows or columns.
    With f = W z + b, the objective over n rows is

    - softmax: mean of -log softmax(f)[label] + strength/2 ||W||², a row of W for each class;
    - svm: for each class against the rest, t = ±1: mean of max(0, 1 - t f)² + strength/2 ||w||²;
    - ridge: for each class, t = ±1: mean of (f - t)² + strength/2 ||w||²;
    - sigmoid: for each label, t = 0 or 1: mean of log(1 + exp(f)) - t f + strength/2 ||w||²;
    - regression: for each number t: mean of (f - t)² + strength/2 ||w||².

    On the same z this is scikit-learn's ``LogisticRegression(C=1 / (n * strength))`` (of softmax
    with two classes C is twice that, for it keeps one row and we two), ``LinearSVC(C=1 / (n *
    strength))`` with an unpenalized intercept, and ``Ridge(alpha=n * strength / 2)``. SVM and ridge
    make one decision for two classes.

    Args:
        codes: [n, d] floats, finite.
        targets: [n] classes, integers from 0 to outputs - 1; of "sigmoid" [n, outputs] labels, 0
            or 1; of "regression" [n, outputs] finite numbers.
        outputs: rows of the heads. A class without codes, or a label that no row has, gets a bias
            that it never wins with; a label that all rows have one that it always wins with.
        kind: one of `KINDS`.
        strengths: positive numbers, in any order; the heads come strongest first.
        tolerance: how far above the minimum an objective may stay, as a fraction of it (an
            estimate: at 1e-8 less than 1e-6 was measured). Ridge and regression are exact.

    Raises:
        UsageError: for an unknown kind or a strength that is not positive.
        DataError: for codes and targets that cannot be used, fewer than two classes with rows, or
            no label that some rows have and others lack.
    """
    codes, targets = np.asarray(codes), np.asarray(targets)
    check_kind(kind)
    check_rows(codes, targets, outputs, kind)
    if not strengths or not all(0 < strength < np.inf for strength in strengths):
        raise UsageError(f"strengths {list(strengths)} must be positive numbers; give at least one")
    present = learnable(targets, outputs, kind)
    if len(present) < (2 if kind in CLASS_KINDS else 1):
        raise DataError(what_is_missing(kind))
    axes = principal_axes(codes)
    path = sorted(strengths, reverse=True)
    solutions = _solutions(axes, codes, targets, present, kind, path, tolerance)
    default = np.full(outputs, NEVER, dtype=np.float32)
    if kind == "sigmoid":
        default[targets.min(axis=0) > 0] = -NEVER
    for strength, weights in zip(path, solutions, strict=True):
        yield _head(axes, weights, present, default, kind, strength)


def _solutions(
    axes: PrincipalAxes,
    codes: Array,
    targets: Array,
    present: Array,
    kind: str,
    path: Sequence[float],
    tolerance: float,
) -> Iterator[Array]:
    """Yield the weights [r + 1, m] of the outputs that are present, at every strength."""
    if kind == "regression":
        return ridge_path(axes, codes, lambda rows: targets[rows], path)
    if kind == "sigmoid":
        problem = logistic_problem(targets[:, present])
    else:
        own, classes = np.searchsorted(present, targets), len(present)
        if kind == "softmax" and classes == 2:
            # One decision v = w2 - w1: at the minimum ||w1||² + ||w2||² = ||v||² / 2.
            problem = logistic_problem((own == 1)[:, None])
            halves = [strength / 2 for strength in path]
            return iterative_path(axes, codes, problem, halves, tolerance)
        if kind == "ridge":
            return ridge_path(axes, codes, signs_of(own, classes), path)
        make = softmax_problem if kind == "softmax" else squared_hinge_problem
        problem = make(own, classes)
    return iterative_path(axes, codes, problem, path, tolerance)


def learnable(targets: Array, outputs: int, kind: str) -> Array:
    """Return the outputs that there is something to learn about, ascending.

    Those are the classes with rows, the labels that some rows have and others lack, and all
    numbers.
    """
    if kind == "regression":
        return np.arange(outputs)
    if kind == "sigmoid":
        return np.flatnonzero((targets > 0).any(axis=0) & (targets < 1).any(axis=0))
    return np.unique(targets)


def what_is_missing(kind: str) -> str:
    """Say what a head needs where nothing is learnable."""
    if kind == "sigmoid":
        return "a head needs a label that some images have and others lack; add such images"
    return "a head needs rows of at least two classes; add images of another class"


def check_kind(kind: str) -> None:
    """Raise UsageError unless there is such a head."""
    if kind not in KINDS:
        hint = did_you_mean(kind, KINDS) or f"; choose one of {', '.join(KINDS)}"
        raise UsageError(f"unknown kind of head {kind!r}{hint}")


def check_rows(codes: Array, targets: Array, outputs: int, kind: str) -> None:
    """Raise DataError unless codes are [n, d] and targets fit them and the kind of head."""
    own = () if kind in CLASS_KINDS else (outputs,)
    if codes.ndim != 2 or targets.shape != (*codes.shape[:1], *own):
        raise DataError(
            f"codes of shape {list(codes.shape)} do not fit labels of shape {list(targets.shape)};"
            f" give [n, d] and [n{', outputs' if own else ''}]"
        )
    if not len(targets):
        return
    low, high = targets.min(), targets.max()
    if kind in CLASS_KINDS and not 0 <= low <= high < outputs:
        raise DataError(f"labels run from {low} to {high}; give numbers from 0 to {outputs - 1}")
    if kind == "sigmoid" and not np.isin(targets, (0, 1)).all():
        raise DataError(f"labels run from {low} to {high}; give 0 or 1")
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError("the numbers to learn hold NaN or infinity; leave those images out")


def _head(
    axes: PrincipalAxes,
    weights: Array,
    present: Array,
    default: Array,
    kind: str,
    strength: float,
) -> LinearHead:
    """Rotate and scale weights [r + 1, m] back, and give every output its row."""
    if weights.shape[1] < len(present):
        weights = weights * [-0.5, 0.5]
    rows = axes.rotated_back(weights[:-1]).T * axes.scale
    weight = np.zeros((len(default), len(axes.mean)), dtype=np.float32)
    bias = default.copy()
    weight[present] = rows
    bias[present] = weights[-1] - rows @ axes.mean
    return LinearHead(kind, weight, bias, float(strength))
