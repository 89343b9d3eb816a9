"""A linear probe: a head on cached codes, its strength chosen inside the training rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from topwork.errors import DataError
from topwork.learn.folds import stratified_folds
from topwork.learn.heads import STRENGTHS, LinearHead, check_kind, check_rows, fit_head, fit_path
from topwork.learn.metrics import proportion
from topwork.learn.temperature import fit_temperature, log_loss

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
        accuracy: share of held-out rows whose highest score is their label.
        log_loss: mean of -ln p(label) over held-out rows, in nats, at the temperature.
        temperature: the one fitted to the same held-out scores.
    """

    strength: float
    accuracy: float
    log_loss: float
    temperature: float


@dataclass(frozen=True)
class Probe:
    """A head and how it was chosen.

    Attributes:
        head: fitted on all rows at the chosen strength, with the temperature found there.
        table: a result for each strength, strongest first.
        chosen: index into the table.
        accuracy: ``{"value", "interval", "n"}`` out of fold at the chosen strength. The choice
            looked at it, so it flatters a little: it is no substitute for a test part.
        folds_made: how many folds the rows were divided into; 1 for a validation part.
        folds_evaluated: how many of them were held out in turn.
        notes: what a reader should know, each one sentence.
        seconds: wall time of all of it.
    """

    head: LinearHead
    table: tuple[StrengthResult, ...]
    chosen: int
    accuracy: dict[str, Any]
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
            "out_of_fold": self.accuracy,
            "table": [vars(result) for result in self.table],
            "chosen": self.chosen,
            "folds_made": self.folds_made,
            "folds_evaluated": self.folds_evaluated,
            "notes": list(self.notes),
            "seconds": self.seconds,
        }


def probe(
    codes: Array,
    labels: Array,
    class_count: int,
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
    strongly or hardly penalized is under- or overconfident.

    With more than 100,000 rows over all folds fewer folds are evaluated, and none is larger than
    20,000 rows; the notes say so.

    Args:
        codes: [n, d] floats.
        labels: [n] integers from 0 to class_count - 1.
        class_count: rows of the head.
        kind: ``"softmax"``, ``"svm"`` or ``"ridge"``.
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
    >>> found.accuracy["value"], len(found.table)
    (1.0, 13)
    """
    started = time.perf_counter()
    codes, labels = np.asarray(codes), np.asarray(labels)
    check_kind(kind)
    check_rows(codes, labels, class_count)
    path = sorted(STRENGTHS[kind] if strengths is None else strengths, reverse=True)
    made, evaluated = _folds(labels, groups, validation, seed)
    held_out = np.concatenate(evaluated)
    with _threads_for(codes):
        scores = [
            _held_out_scores(codes, labels, class_count, kind, path, fold) for fold in evaluated
        ]
        table = tuple(
            _result(strength, np.concatenate(parts), labels[held_out])
            for strength, *parts in zip(path, *scores, strict=True)
        )
        chosen = int(np.argmin([result.log_loss for result in table]))
        best = table[chosen]
        head = fit_head(codes, labels, class_count, kind=kind, strength=best.strength)
    return Probe(
        head=replace(head, temperature=best.temperature),
        table=table,
        chosen=chosen,
        accuracy=proportion(round(best.accuracy * len(held_out)), len(held_out)),
        folds_made=made,
        folds_evaluated=len(evaluated),
        notes=(*_note_on_folds(made, len(evaluated), len(labels)), *_note_on_end(table, chosen)),
        seconds=time.perf_counter() - started,
    )


def _folds(
    labels: Array, groups: Array | None, validation: Array | None, seed: int
) -> tuple[int, list[Array]]:
    """Return how many folds were made and those to hold out, each as row numbers."""
    n = len(labels)
    if validation is not None:
        folds = [np.unique(np.asarray(validation, dtype=np.int64))]
        if len(folds[0]) == 0 or folds[0][0] < 0 or folds[0][-1] >= n:
            raise DataError(f"the validation rows are not among rows 0 to {n - 1}; name some")
        made = 1
    else:
        folds = stratified_folds(labels, groups, max(FOLDS, n // MOST_HELD_OUT), seed)
        made = len(folds)
        folds = folds[: max(1, MOST_ROWS // n)]
    usable = [fold for fold in folds if len(np.unique(np.delete(labels, fold))) > 1]
    if not usable:
        raise DataError(
            "without the held-out rows there is only one class left to train on;"
            " add images of the other classes"
        )
    return made, usable


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
    codes: Array, labels: Array, class_count: int, kind: str, path: Sequence[float], fold: Array
) -> list[Array]:
    """Return for each strength the scores [rows of the fold, c] of a head that never saw them."""
    kept = np.delete(np.arange(len(labels)), fold)
    heads = fit_path(
        codes[kept], labels[kept], class_count, kind=kind, strengths=path, tolerance=CHOOSING
    )
    held_out = codes[fold]
    return [head.scores(held_out) for head in heads]


def _result(strength: float, scores: Array, labels: Array) -> StrengthResult:
    temperature = fit_temperature(scores, labels)
    accuracy = float((scores.argmax(axis=1) == labels).mean())
    return StrengthResult(strength, accuracy, log_loss(scores, labels, temperature), temperature)


def _note_on_folds(made: int, evaluated: int, n: int) -> tuple[str, ...]:
    if evaluated == made:
        return ()
    why = f"{n} rows are many" if n * made > MOST_ROWS else "the others leave one class to train on"
    return (f"{evaluated} of {made} folds evaluated: {why}",)


def _note_on_end(table: tuple[StrengthResult, ...], chosen: int) -> tuple[str, ...]:
    if len(table) == 1 or chosen not in (0, len(table) - 1):
        return ()
    end, neighbor = ("strongest", 1) if chosen == 0 else ("weakest", chosen - 1)
    if table[neighbor].log_loss < (1 + WORTH_A_NOTE) * table[chosen].log_loss:
        return ()
    best = table[chosen].strength
    return (f"the best strength, {best:.2g}, is the {end} tried: a longer path may find a better",)
