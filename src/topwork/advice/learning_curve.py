"""How accuracy grows with the number of labels, and what twice as many would add."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from topwork.learn.bootstrap import drawn
from topwork.learn.folds import stratified_folds
from topwork.learn.judging import Judged, folds_of, judge_divisions
from topwork.learn.metrics import wilson
from topwork.learn.standard_error import degrees_of_freedom, quantile
from topwork.learn.targets import Targets

Array = np.ndarray

PARTS = 8
"""Into so many parts the training side of a fold is divided; 1, 2, 4 and all of them are used."""

RESAMPLES = 500
LEAST_ERROR = np.finfo(float).tiny  # of numbers; its logarithm is taken
LAST = 3
"""So many of the largest sizes the forecast goes by."""


@dataclass(frozen=True, eq=False)
class Point:
    """A probe on some of the labels.

    Attributes:
        images: learned from, in the mean over the folds.
        images_per_class: that over the classes; of labels and numbers that as it is.
        judged: how it does on the held-out rows, which are the same at all points.
    """

    images: float
    images_per_class: float
    judged: Judged

    def record(self) -> dict[str, Any]:
        """Return plain data."""
        found = self.judged.out_of_fold
        return {
            "images": round(self.images),
            "images_per_class": round(self.images_per_class, 1),
            "value": found["value"],
            "interval": found["interval"],
            "loss": self.judged.best.loss,
        }


@dataclass(frozen=True, eq=False)
class LearningCurve:
    """Accuracy by number of labels, and a forecast.

    Attributes:
        points: from few images to all.
        doubling: how much accuracy twice the images are expected to add (of numbers: how much of
            the variance they are expected to explain in addition).
        low: end of its 95 % interval.
        high: likewise.
    """

    points: tuple[Point, ...]
    doubling: float
    low: float
    high: float

    def record(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "points": [point.record() for point in self.points],
            "doubling": {"value": self.doubling, "interval": [self.low, self.high]},
        }


def learning_curve(
    codes: Array, targets: Targets, *, kind: str, path: Sequence[float], groups: Array, seed: int
) -> LearningCurve:
    """Probe codes with an eighth, a quarter, a half and all of the labels, on the same folds.

    The forecast fits a power law, error = a * images ** -b, to the largest three sizes (Hestness
    2017; b from 0 to 1) and reads it at twice the images; its interval comes from drawing groups of
    held-out rows anew.

    Args:
        codes: [n, d] floats.
        targets: of the same rows.
        kind: of head.
        path: strengths to choose from at each size.
        groups: [n] what must not be divided.
        seed: of the folds and the parts.
    """
    folds = folds_of(targets.values, targets.outputs, kind, groups, None, seed)[1]
    nested = [nested_parts(targets, fold, groups, seed) for fold in folds]
    fewest = min(len(parts) for parts in nested)
    classes = len(targets.names) if targets.kind == "classes" else 1
    points = []
    for count in (*(count for count in (1, 2, 4) if count < fewest), 0):  # 0 less 1: the last, all
        divisions = [(parts[count - 1], fold) for parts, fold in zip(nested, folds, strict=True)]
        if not all(learnable(targets, learned) for learned, _ in divisions):
            continue
        judged = judge_divisions(
            codes, targets.values, targets.outputs, divisions, kind=kind, path=path, seed=seed
        )
        images = float(np.mean([len(learned) for learned, _ in divisions]))
        points.append(Point(images, images / classes, judged))
    return LearningCurve(tuple(points), *forecast(points, groups, seed))


def nested_parts(targets: Targets, fold: Array, groups: Array, seed: int) -> list[Array]:
    """Return the rows outside a fold in growing parts, each with the ones before it; last all."""
    learned = np.delete(np.arange(len(targets.values)), fold)
    if len(np.unique(groups[learned])) < 2:
        return [learned]
    parts = stratified_folds(targets.strata()[learned], groups[learned], PARTS, seed)
    return [np.sort(learned[np.concatenate(parts[:count])]) for count in range(1, len(parts) + 1)]


def learnable(targets: Targets, rows: Array) -> bool:
    """Say whether there is anything to learn from some rows."""
    values = targets.values[rows]
    return bool((values != values[:1]).any())


def forecast(points: Sequence[Point], groups: Array, seed: int) -> tuple[float, float, float]:
    """Return what twice the images are expected to add, and the ends of its 95 % interval.

    Args:
        points: of a learning curve.
        groups: of all rows, what is never divided between folds and so is drawn as one.
        seed: of the drawing.
    """
    last = points[-LAST:]
    if len(last) < 2:
        return 0.0, 0.0, 1.0
    judged = [point.judged for point in last]
    wrong = np.stack([j.losses if j.right is None else 1 - j.right for j in judged])
    known = np.isfinite(wrong).all(axis=0)
    wrong, own = wrong[:, known], groups[judged[0].rows[known]]
    n = len(own)
    sizes = np.log2([point.images for point in last])
    times = np.concatenate([np.ones((1, n), np.int64), *drawn(n, RESAMPLES, seed, own)])
    totals, rows = times @ wrong.T, times.sum(axis=1, keepdims=True)  # [resamples, sizes], [.., 1]
    if judged[0].right is None:
        errors = np.maximum(totals / rows, LEAST_ERROR)
    else:
        errors = (totals + 0.5) / (rows + 1)  # none is zero
    centered = sizes - sizes.mean()
    slopes = -(np.log2(errors) @ centered) / (centered @ centered)
    gains = errors[:, -1] * (1 - 2.0 ** -np.clip(slopes, 0, 1))
    low, high = np.quantile(gains[1:], [0.025, 0.975])
    freedom = degrees_of_freedom(own)
    if math.isfinite(freedom):  # few groups tell little of how much groups differ
        half = quantile(max(1.0, freedom)) * float(gains[1:].std())
        low, high = min(low, gains[0] - half), max(high, gains[0] + half)
    if not wrong[-1].any():  # resamples of no error hold none: half of what may be wrong yet
        high = max(high, wilson(0, len(np.unique(own)))[1] / 2)
    return float(gains[0]), float(min(low, gains[0])), float(max(high, gains[0]))
