"""A linear probe: a head on cached codes, its strength chosen inside the training rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from topwork.learn.heads import LinearHead, fit_head
from topwork.learn.judging import StrengthResult, every_view, judge, of_views
from topwork.learn.principal import one_thread

Array = np.ndarray


@dataclass(frozen=True)
class Probe:
    """A head and how it was chosen.

    Attributes:
        head: fitted on all rows but those kept out at the chosen strength, with the temperature
            found there.
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
    keep_out: bool = False,
    views: int = 1,
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
        codes: [views * n, d] floats, view by view, the plain one of all images first.
        targets: [n] classes from 0 to outputs - 1, or [n, outputs] labels or numbers, as the kind
            of head takes them (see :func:`topwork.learn.heads.fit_path`).
        outputs: rows of the head.
        kind: one of `topwork.learn.heads.KINDS`.
        strengths: the path; by default that of the kind, ``STRENGTHS``.
        groups: [n]; images of one group are never divided between folds.
        validation: numbers of the images of a validation part. Then that part alone is held out,
            once; the final fit has it too.
        keep_out: leave the validation part out of the final fit.
        views: of each image. Heads learn from all, and are judged by the plain one.
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
    found = judge(
        codes,
        targets,
        outputs,
        kind=kind,
        strengths=strengths,
        groups=groups,
        validation=validation,
        views=views,
        seed=seed,
    )
    learned = np.arange(len(targets))
    if keep_out and validation is not None:
        learned = np.delete(learned, validation)
        codes = codes[every_view(learned, len(targets), views)]
    own = of_views(targets[learned], views)
    with one_thread():
        head = fit_head(codes, own, outputs, kind=kind, strength=found.best.strength)
    return Probe(
        head=replace(head, temperature=found.best.temperature),
        table=found.table,
        chosen=found.chosen,
        out_of_fold=found.out_of_fold,
        folds_made=found.folds_made,
        folds_evaluated=found.folds_evaluated,
        notes=found.notes,
        seconds=time.perf_counter() - started,
    )
