"""How kinds of heads do on rows that they did not see, over a path of strengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from topwork.errors import DataError
from topwork.learn.folds import label_strata, number_strata, stratified_folds
from topwork.learn.heads import (
    CLASS_KINDS,
    NEVER,
    STRENGTHS,
    check_kind,
    check_rows,
    fit_path,
    learnable,
    what_is_missing,
)
from topwork.learn.label_metrics import evaluate_labels
from topwork.learn.metrics import share
from topwork.learn.number_metrics import evaluate_numbers
from topwork.learn.principal import one_thread
from topwork.learn.temperature import as_two_classes, fit_temperature, log_loss, log_losses
from topwork.network.answers import answers

Array = np.ndarray

FOLDS = 5
MOST_ROWS = 100_000  # rows, views too, over all folds that are evaluated: above it fewer folds
MOST_HELD_OUT = 20_000  # rows in one fold: above this the folds are smaller
CHOOSING = 1e-6  # tolerance of the fits that only choose; one that is kept is fitted to the end
WORTH_A_NOTE = 0.01  # a best strength at the end of the path, better by this than its neighbor


@dataclass(frozen=True)
class StrengthResult:
    """Out-of-fold result at one strength.

    Attributes:
        strength: of the penalty (see :func:`topwork.learn.heads.fit_path`).
        loss: what the choice goes by, a mean over held-out rows: -ln p(label), in nats, at the
            temperature, of several labels their mean; of numbers the squared error relative to
            the number's variance.
        accuracy: share of held-out rows whose highest score is their label; of held-out labels
            that are on the right side of 0; None for numbers.
        temperature: the one fitted to the same held-out scores; 1 for numbers.
    """

    strength: float
    loss: float
    accuracy: float | None
    temperature: float


@dataclass(frozen=True, eq=False)
class Judged:
    """How heads of one kind do on rows that they did not see.

    Attributes:
        kind: of head.
        table: a result for each strength, strongest first.
        chosen: index into the table: where the loss is least.
        rows: [m] int64, which rows were held out, fold by fold.
        losses: [m] float64, the loss of each at the chosen strength; NaN for rows of a class that
            no training row had. Their mean is the table's loss, but for several labels, where
            cells are left out.
        right: [m] float64, 1 where the highest score is the label, else 0; of several labels the
            share on the right side; None for numbers.
        out_of_fold: ``{"metric", "value", "interval", "n"}`` at the chosen strength: accuracy, or
            what else the kind of targets is judged by. The choice looked at these rows, so it
            flatters a little: it is no substitute for a test part.
        folds_made: how many folds the rows were divided into; 1 for a validation part.
        folds_evaluated: how many of them were held out in turn.
        notes: what a reader should know, each one sentence.
    """

    kind: str
    table: tuple[StrengthResult, ...]
    chosen: int
    rows: Array
    losses: Array
    right: Array | None
    out_of_fold: dict[str, Any]
    folds_made: int
    folds_evaluated: int
    notes: tuple[str, ...]

    @property
    def best(self) -> StrengthResult:
        """The result at the chosen strength."""
        return self.table[self.chosen]


def judge(
    codes: Array,
    targets: Array,
    outputs: int,
    *,
    kind: str = "softmax",
    strengths: Sequence[float] | None = None,
    groups: Array | None = None,
    validation: Array | None = None,
    views: int = 1,
    seed: int = 0,
) -> Judged:
    """Fit heads of one kind at every strength on the same folds, and judge what they say outside.

    They learn from all views of images, and are judged by the plain one, as models are used.

    Args:
        codes: as `topwork.learn.probe.probe` takes them, and all else too.
        targets: of the images.
        outputs: rows of the head.
        kind: of head.
        strengths: the path.
        groups: what must not be divided.
        validation: images to hold out in place of folds.
        views: of each image.
        seed: of the folds: with the same targets and groups they are the same.

    Raises:
        UsageError: for an unknown kind or strengths that are not positive.
        DataError: where the rows do not allow to choose.

    >>> generator = np.random.default_rng(0)
    >>> labels = np.repeat([0, 1], 50)
    >>> codes = generator.normal(size=(100, 4)) + 4 * labels[:, None]
    >>> found = judge(codes, labels, 2, kind="ridge")
    >>> found.out_of_fold["value"], len(found.rows), len(found.table)
    (1.0, 100, 20)
    """
    codes, targets = np.asarray(codes), np.asarray(targets)
    n, rows = len(targets), of_views(targets, views)
    check_kind(kind)
    check_rows(codes, rows, outputs, kind)
    path = sorted(STRENGTHS[kind] if strengths is None else strengths, reverse=True)
    made, evaluated = folds_of(targets, outputs, kind, groups, validation, seed, views)
    learned = [np.delete(np.arange(n), fold) for fold in evaluated]
    divisions = [
        (every_view(own, n, views), fold) for own, fold in zip(learned, evaluated, strict=True)
    ]
    notes = _note_on_folds(made, len(evaluated), len(rows))
    found = judge_divisions(
        codes, rows, outputs, divisions, kind=kind, path=path, groups=groups, seed=seed
    )
    return replace(found, folds_made=made, notes=(*notes, *found.notes))


def of_views(targets: Array, views: int) -> Array:
    """Return the targets of all views of images, view by view."""
    return np.concatenate([targets] * views)


def every_view(images: Array, n: int, views: int) -> Array:
    """Return the rows of all views of some of n images, view by view.

    >>> every_view(np.array([1]), 3, 2).tolist()
    [1, 4]
    """
    return np.concatenate([images + n * view for view in range(views)])


def judge_divisions(
    codes: Array,
    targets: Array,
    outputs: int,
    divisions: Sequence[tuple[Array, Array]],
    *,
    kind: str,
    path: Sequence[float],
    groups: Array | None = None,
    seed: int = 0,
) -> Judged:
    """Fit heads on the first rows of each division and judge what they say about the second.

    Args:
        codes: [n, d] floats.
        targets: of the same rows.
        outputs: rows of the head.
        divisions: row numbers to learn from and to be judged by, no row judged twice.
        kind: of head.
        path: strengths, strongest first.
        groups: what belongs together of the rows to be judged by, at the least of those up to the
            last of them; None if each row stands alone.
        seed: of intervals.
    """
    held_out = np.concatenate([judged for _, judged in divisions])
    together = None if groups is None else np.asarray(groups)[held_out]
    with one_thread():  # the heads share out large problems themselves
        parts = [
            _held_out_scores(codes, targets, outputs, kind, path, division)
            for division in divisions
        ]
    scores = [np.concatenate(own) for own in zip(*parts, strict=True)]
    wanted = targets[held_out]
    table = tuple(
        _result(strength, own, wanted, kind) for strength, own in zip(path, scores, strict=True)
    )
    chosen = int(np.argmin([result.loss for result in table]))
    best, found = table[chosen], scores[chosen]
    return Judged(
        kind=kind,
        table=table,
        chosen=chosen,
        rows=held_out,
        losses=losses_of_rows(kind, found, wanted, best.temperature),
        right=right_of_rows(kind, found, wanted),
        out_of_fold=headline(kind, found, wanted, best.temperature, seed, together),
        folds_made=len(divisions),
        folds_evaluated=len(divisions),
        notes=_note_on_end(table, chosen),
    )


def losses_of_rows(kind: str, scores: Array, targets: Array, temperature: float) -> Array:
    """Return the loss of each row, float64 [n], as `StrengthResult` has their mean.

    Of several labels it is the mean over those that the head has seen; NaN where there are none,
    and for rows of a class that it has not seen.

    Args:
        kind: of head.
        scores: [n, outputs] floats.
        targets: as for `judge`.
        temperature: that the scores are divided by.

    >>> losses_of_rows("softmax", np.zeros((1, 2)), np.array([1]), 1.0).round(4).tolist()
    [0.6931]
    """
    if kind == "regression":
        return _relative_errors(scores, targets)
    seen = np.abs(scores) != -NEVER
    if kind == "sigmoid":
        margins = np.where(targets > 0, scores, -scores) / temperature
        cells = np.where(seen, np.logaddexp(0.0, -margins), 0.0)
        return np.where(
            seen.any(axis=1), cells.sum(axis=1) / np.maximum(1, seen.sum(axis=1)), np.nan
        )
    losses = log_losses(scores.astype(np.float64), targets, temperature)
    return np.where(seen[np.arange(len(targets)), targets], losses, np.nan)


def right_of_rows(kind: str, scores: Array, targets: Array) -> Array | None:
    """Return how right each row is, float64 [n], as `Judged` has it."""
    if kind == "regression":
        return None
    if kind == "sigmoid":
        return ((scores > 0) == (targets > 0)).mean(axis=1)
    return (scores.argmax(axis=1) == targets).astype(np.float64)


def folds_of(
    targets: Array,
    outputs: int,
    kind: str,
    groups: Array | None,
    validation: Array | None,
    seed: int,
    views: int = 1,
) -> tuple[int, list[Array]]:
    """Return how many folds were made and those to hold out, each as numbers of images."""
    n = len(targets)
    if validation is not None:
        folds = [np.unique(np.asarray(validation, dtype=np.int64))]
        if len(folds[0]) == 0 or folds[0][0] < 0 or folds[0][-1] >= n:
            raise DataError(f"the validation rows are not among rows 0 to {n - 1}; name some")
        made = 1
    else:
        strata = _strata(targets, kind)
        folds = stratified_folds(strata, groups, max(FOLDS, n // MOST_HELD_OUT), seed)
        made = len(folds)
        folds = folds[: max(1, MOST_ROWS // (n * views))]
    least = 2 if kind in CLASS_KINDS else 1
    usable = [
        fold
        for fold in folds
        if len(fold) < n and len(learnable(np.delete(targets, fold, 0), outputs, kind)) >= least
    ]
    if not usable:
        raise DataError(f"without the held-out rows, {what_is_missing(kind)}")
    return made, usable


def _strata(targets: Array, kind: str) -> Array:
    """Return the classes [n] that are to be spread evenly over the folds."""
    if kind in CLASS_KINDS:
        return targets
    return label_strata(targets) if kind == "sigmoid" else number_strata(targets)


def _held_out_scores(
    codes: Array,
    targets: Array,
    outputs: int,
    kind: str,
    path: Sequence[float],
    division: tuple[Array, Array],
) -> list[Array]:
    """Return for each strength the scores [judged, outputs] of a head that never saw these rows."""
    learned, judged = division
    heads = fit_path(
        codes[learned], targets[learned], outputs, kind=kind, strengths=path, tolerance=CHOOSING
    )
    held_out = codes[judged]
    return [head.scores(held_out) for head in heads]


def _result(strength: float, scores: Array, targets: Array, kind: str) -> StrengthResult:
    if kind == "regression":
        return StrengthResult(strength, float(_relative_errors(scores, targets).mean()), None, 1.0)
    if kind == "sigmoid":
        scores, targets = as_two_classes(scores, targets)
    temperature = fit_temperature(scores, targets)
    accuracy = float((scores.argmax(axis=1) == targets).mean())
    return StrengthResult(strength, log_loss(scores, targets, temperature), accuracy, temperature)


def _relative_errors(predicted: Array, numbers: Array) -> Array:
    """Return the squared error of each row over the variance, a mean over numbers that vary."""
    errors = np.square(predicted - numbers, dtype=np.float64)
    variances = numbers.var(axis=0, dtype=np.float64)
    varies = variances > 0
    if not varies.any():
        return np.zeros(len(numbers))
    return (errors[:, varies] / variances[varies]).mean(axis=1)


def headline(
    kind: str,
    scores: Array,
    targets: Array,
    temperature: float,
    seed: int,
    groups: Array | None = None,
) -> dict[str, Any]:
    """Return ``{"metric", "value", "interval", "n"}`` of held-out scores [n, outputs].

    The interval takes rows of one group [n] together.
    """
    names = [str(column) for column in range(scores.shape[1])]
    if kind == "regression":
        metric = "mean_absolute_error"
        report = evaluate_numbers(scores, targets, names, seed=seed, groups=groups)
    elif kind == "sigmoid" and len(names) > 1:
        said = answers(kind, scores / temperature)
        metric = "mean_average_precision"
        report = evaluate_labels(said, targets, names, seed=seed, groups=groups)
    else:
        right = (scores > 0) == (targets > 0) if kind == "sigmoid" else scores.argmax(1) == targets
        metric, report = "accuracy", {"accuracy": share(right.ravel(), groups)}
    return {"metric": metric, **report[metric]}


def _note_on_folds(made: int, evaluated: int, n: int) -> tuple[str, ...]:
    if evaluated == made:
        return ()
    why = (
        f"{n} rows are many" if n * made > MOST_ROWS else "the others leave too little to train on"
    )
    return (f"{evaluated} of {made} folds evaluated: {why}",)


def _note_on_end(table: tuple[StrengthResult, ...], chosen: int) -> tuple[str, ...]:
    if len(table) == 1 or chosen not in (0, len(table) - 1):
        return ()
    end, neighbor = ("strongest", 1) if chosen == 0 else ("weakest", chosen - 1)
    if table[neighbor].loss < (1 + WORTH_A_NOTE) * table[chosen].loss:
        return ()
    best = table[chosen].strength
    return (f"the best strength, {best:.2g}, is the {end} tried: a longer path may find a better",)
