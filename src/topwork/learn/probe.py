"""A linear probe: a head on cached codes, its strength chosen inside the training rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from topwork.errors import DataError
from topwork.learn.folds import label_strata, number_strata, stratified_folds
from topwork.learn.heads import (
    CLASS_KINDS,
    STRENGTHS,
    LinearHead,
    check_kind,
    check_rows,
    fit_head,
    fit_path,
    learnable,
    what_is_missing,
)
from topwork.learn.label_metrics import evaluate_labels
from topwork.learn.metrics import proportion
from topwork.learn.number_metrics import evaluate_numbers
from topwork.learn.temperature import as_two_classes, fit_temperature, log_loss
from topwork.network.answers import answers

Array = np.ndarray

FOLDS = 5
MOST_ROWS = 100_000  # rows over all folds that are evaluated: above this there are fewer folds
MOST_HELD_OUT = 20_000  # rows in one fold: above this the folds are smaller
CHOOSING = 1e-6  # tolerance of the fits that only choose; one that is kept is fitted to the end
SMALL = 2**24  # numbers in the codes, below which one thread is as fast as many and never slower
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


@dataclass(frozen=True)
class Probe:
    """A head and how it was chosen.

    Attributes:
        head: fitted on all rows at the chosen strength, with the temperature found there.
        table: a result for each strength, strongest first.
        chosen: index into the table.
        out_of_fold: ``{"metric", "value", "interval", "n"}`` at the chosen strength: accuracy, or
            what else the kind of targets is judged by. The choice looked at these rows, so it
            flatters a little: it is no substitute for a test part.
        folds_made: how many folds the rows were divided into; 1 for a validation part.
        folds_evaluated: how many of them were held out in turn.
        notes: what a reader should know, each one sentence.
        seconds: wall time of all of it.
    """

    head: LinearHead
    table: tuple[StrengthResult, ...]
    chosen: int
    out_of_fold: dict[str, Any]
    folds_made: int
    folds_evaluated: int
    notes: tuple[str, ...]
    seconds: float

    def record(self) -> dict[str, Any]:
        """Return all but the head's weights as plain data."""
        return {
            "kind": self.head.kind,
            "strength": self.head.strength,
            "temperature": self.head.temperature,
            "out_of_fold": self.out_of_fold,
            "table": [vars(result) for result in self.table],
            "chosen": self.chosen,
            "folds_made": self.folds_made,
            "folds_evaluated": self.folds_evaluated,
            "notes": list(self.notes),
            "seconds": self.seconds,
        }


def probe(
    codes: Array,
    targets: Array,
    outputs: int,
    *,
    kind: str = "softmax",
    strengths: Sequence[float] | None = None,
    groups: Array | None = None,
    validation: Array | None = None,
    seed: int = 0,
) -> Probe:
    """Choose a strength on held-out rows, then fit the head on all rows.

    Every strength is fitted on the same folds. For each a temperature is fitted to the held-out
    scores, and the strength with the least log-loss at its temperature is taken, the stronger one
    of equals. Log-loss moves smoothly where accuracy moves in steps of one image and ties: over
    96 draws of 100 or 300 images it led to better heads by both measures. All kinds of head get a
    temperature: SVM and ridge have no probabilities without one, and a softmax head that is
    strongly or hardly penalized is under- or overconfident. Several labels share one temperature.
    A regression has none, and goes by its squared error.

    With more than 100,000 rows over all folds fewer folds are evaluated, and none is larger than
    20,000 rows; the notes say so.

    Args:
        codes: [n, d] floats.
        targets: [n] classes from 0 to outputs - 1, or [n, outputs] labels or numbers, as the kind
            of head takes them (see :func:`topwork.learn.heads.fit_path`).
        outputs: rows of the head.
        kind: one of `topwork.learn.heads.KINDS`.
        strengths: the path; by default that of the kind, ``STRENGTHS``.
        groups: [n]; rows of one group are never divided between folds.
        validation: row numbers of a validation part. Then that part alone is held out, once; the
            final fit has its rows too.
        seed: of the folds.

    Raises:
        UsageError: for an unknown kind or strengths that are not positive.
        DataError: where the rows do not allow to choose.

    >>> generator = np.random.default_rng(0)
    >>> labels = np.repeat([0, 1], 50)
    >>> codes = generator.normal(size=(100, 4)) + 4 * labels[:, None]
    >>> found = probe(codes, labels, 2)
    >>> found.out_of_fold["value"], len(found.table)
    (1.0, 13)
    """
    started = time.perf_counter()
    codes, targets = np.asarray(codes), np.asarray(targets)
    check_kind(kind)
    check_rows(codes, targets, outputs, kind)
    path = sorted(STRENGTHS[kind] if strengths is None else strengths, reverse=True)
    made, evaluated = _folds(targets, outputs, kind, groups, validation, seed)
    held_out = np.concatenate(evaluated)
    with _threads_for(codes):
        parts = [_held_out_scores(codes, targets, outputs, kind, path, fold) for fold in evaluated]
        scores = [np.concatenate(own) for own in zip(*parts, strict=True)]
        table = tuple(
            _result(strength, own, targets[held_out], kind)
            for strength, own in zip(path, scores, strict=True)
        )
        chosen = int(np.argmin([result.loss for result in table]))
        best = table[chosen]
        head = fit_head(codes, targets, outputs, kind=kind, strength=best.strength)
    return Probe(
        head=replace(head, temperature=best.temperature),
        table=table,
        chosen=chosen,
        out_of_fold=_judged(best, scores[chosen], targets[held_out], kind, seed),
        folds_made=made,
        folds_evaluated=len(evaluated),
        notes=(*_note_on_folds(made, len(evaluated), len(targets)), *_note_on_end(table, chosen)),
        seconds=time.perf_counter() - started,
    )


def _folds(
    targets: Array,
    outputs: int,
    kind: str,
    groups: Array | None,
    validation: Array | None,
    seed: int,
) -> tuple[int, list[Array]]:
    """Return how many folds were made and those to hold out, each as row numbers."""
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
        folds = folds[: max(1, MOST_ROWS // n)]
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


def _threads_for(codes: Array) -> AbstractContextManager[Any]:
    """Hold NumPy's matrix products to one thread while the problem is small.

    Waiting for each other at the end of every small product costs threads more than they gain; on
    a busy machine a probe took twenty times as long with two as with one.
    """
    if codes.size > SMALL:
        return nullcontext()
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(internal_api="openblas").limit(limits=1)


def _held_out_scores(
    codes: Array, targets: Array, outputs: int, kind: str, path: Sequence[float], fold: Array
) -> list[Array]:
    """Return for each strength the scores [fold, outputs] of a head that never saw these rows."""
    kept = np.delete(np.arange(len(targets)), fold)
    heads = fit_path(
        codes[kept], targets[kept], outputs, kind=kind, strengths=path, tolerance=CHOOSING
    )
    held_out = codes[fold]
    return [head.scores(held_out) for head in heads]


def _result(strength: float, scores: Array, targets: Array, kind: str) -> StrengthResult:
    if kind == "regression":
        return StrengthResult(strength, _relative_error(scores, targets), None, 1.0)
    if kind == "sigmoid":
        scores, targets = as_two_classes(scores, targets)
    temperature = fit_temperature(scores, targets)
    accuracy = float((scores.argmax(axis=1) == targets).mean())
    return StrengthResult(strength, log_loss(scores, targets, temperature), accuracy, temperature)


def _relative_error(predicted: Array, numbers: Array) -> float:
    """Return the mean squared error over the variance, averaged over the numbers that vary."""
    errors = np.square(predicted - numbers, dtype=np.float64).mean(axis=0)
    variances = numbers.var(axis=0, dtype=np.float64)
    varies = variances > 0
    return float((errors[varies] / variances[varies]).mean()) if varies.any() else 0.0


def _judged(
    best: StrengthResult, scores: Array, targets: Array, kind: str, seed: int
) -> dict[str, Any]:
    """Return what a record has on top, for held-out scores [n, outputs]."""
    n = len(targets)
    names = [str(column) for column in range(scores.shape[1])]
    if kind == "regression":
        metric, report = "mean_absolute_error", evaluate_numbers(scores, targets, names, seed=seed)
    elif kind == "sigmoid" and len(names) > 1:
        said = answers(kind, scores / best.temperature)
        metric, report = "mean_average_precision", evaluate_labels(said, targets, names, seed=seed)
    else:
        right = (scores > 0) == (targets > 0) if kind == "sigmoid" else scores.argmax(1) == targets
        metric, report = "accuracy", {"accuracy": proportion(int(right.sum()), n)}
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
