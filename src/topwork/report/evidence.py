"""Everything that a report shows, as one plain dict: the record, pictures, and what they need.

It is made once, after a fit has scored its test images, and written as ``report.json``. The pages
are made from it alone, so they can be made again without the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from topwork.data.audit import Audit
from topwork.data.augment import PLAIN, View
from topwork.data.image_set import ImageSet
from topwork.learn.metrics import BINS, LEAST_PROBABILITY, proportion
from topwork.learn.targets import Targets
from topwork.network.answers import LIKELY, conclusions
from topwork.network.loading import Loaded
from topwork.report.record import in_words
from topwork.report.thumbnails import thumbnails

Array = np.ndarray

FORMAT = 2
"""Of the dict; raise it when older ones cannot be shown any more."""

WORST, SUREST, SEEN = 12, 6, 6  # pictures of each kind
SEEN_IN_VIEWS, VIEWS = 3, 4  # images that are shown in several views, and how many of them
POINTS = 300  # of a scatter plot
NAMES = 4  # numbers that have such a plot


def evidence_of(
    record: dict[str, Any],
    loaded: Loaded,
    images: ImageSet,
    audited: Audit,
    tested: Sequence[int],
    answers: Array,
    targets: Targets,
    decoding: str = "fast",
) -> dict[str, Any]:
    """Return what a report shows as plain data for JSON.

    Args:
        record: of the fit, as ``record.json`` holds it.
        loaded: the network and the settled plan.
        images: the data.
        audited: its content hashes and sides.
        tested: the test images that were scored.
        answers: [tested, names], as a predictor gives them.
        targets: of these images.
        decoding: of the pictures, "fast" or "exact".

    Returns:
        ``record``; ``axis``, the cut points; ``views``, a row of pictures for each of some training
        images; ``worst`` and ``surest``, pictures of test images; ``calibration``, bins of
        probability; ``numbers``, true and predicted ones.
    """
    known = targets.answered()
    losses, right = judge_each(answers, known)
    worst, surest = worst_rows(losses, right), surest_rows(losses, right, known)
    seen = training_views(loaded, images, audited)
    shown = [(tested[row], PLAIN) for row in (*worst, *surest)]
    wanted = [*shown, *(pair for row in seen for pair in row)]
    preprocessing = loaded.backbone.preprocessing
    made = iter(thumbnails(images, wanted, audited.digests, preprocessing, decoding))

    def picture(row: int) -> dict[str, Any]:
        item = images.items[tested[row]]
        (answer,) = conclusions(known.kind, known.names, answers[row : row + 1])
        return {
            "name": item.name,
            "image": next(made),
            "true": in_words(item.labels),
            "said": in_words(answer if isinstance(answer, tuple) else (answer,)),
            "right": bool(right[row]),
            "loss": float(losses[row]),
            **remarks(known, answers[row], row),
        }

    return {
        "format": FORMAT,
        "record": record,
        "axis": [{"name": cut.name, "depth": cut.depth} for cut in loaded.chain.cuts],
        "worst": [picture(row) for row in worst],
        "surest": [picture(row) for row in surest],
        "views": [
            [
                {
                    "name": images.items[index].name,
                    "labels": in_words(images.items[index].labels),
                    "view": view.number,
                    "image": next(made),
                }
                for index, view in row
            ]
            for row in seen
        ],
        "calibration": calibration(answers, known),
        "numbers": scatter(answers, known) if known.kind == "numbers" else [],
    }


def judge_each(answers: Array, known: Targets) -> tuple[Array, Array]:
    """Return for each image how wrong its answer is [n], and whether it is right [n].

    That is -ln p of the true class; the sum of it over labels; the mean absolute error of numbers,
    each in units of its deviation, and then no answer is right or wrong: all count as wrong.

    >>> known = Targets("classes", np.array([1]), ("ant", "bee"))
    >>> judge_each(np.array([[0.75, 0.25]]), known)
    (array([1.38629436]), array([False]))
    """
    if known.kind == "classes":
        own = answers[np.arange(len(answers)), known.values]
        right = answers.argmax(axis=1) == known.values
        return -np.log(np.maximum(own, LEAST_PROBABILITY)), right
    if known.kind == "labels":
        true = known.values > 0
        own = np.where(true, answers, 1 - answers)
        right = ((answers >= LIKELY) == true).all(axis=1)
        return -np.log(np.maximum(own, LEAST_PROBABILITY)).sum(axis=1), right
    deviation = known.values.std(axis=0)
    errors = np.abs(answers - known.values) / np.where(deviation > 0, deviation, 1)
    return errors.mean(axis=1), np.zeros(len(errors), dtype=bool)


def worst_rows(losses: Array, right: Array) -> list[int]:
    """Return the wrong rows of the highest loss, the highest first.

    >>> worst_rows(np.array([0.9, 2.0, 0.1]), np.array([False, False, True]))
    [1, 0]
    """
    order = np.argsort(-losses, kind="stable")
    return order[~right[order]][:WORST].tolist()


def surest_rows(losses: Array, right: Array, known: Targets) -> list[int]:
    """Return right rows of the lowest loss: the best of each class or set of labels, then the next.

    >>> known = Targets("classes", np.array([0, 0, 1]), ("ant", "bee"))
    >>> surest_rows(np.array([0.1, 0.2, 0.3]), np.array([True, True, True]), known)
    [0, 2, 1]
    """
    order = np.argsort(losses, kind="stable")
    taken: dict[bytes, int] = {}
    ranked = []
    for row in order[right[order]].tolist():
        kind = known.values[row].tobytes()
        taken[kind] = rank = taken.get(kind, 0) + 1
        ranked.append((rank, losses[row], row))
    return [row for _, _, row in sorted(ranked)[:SUREST]]


def remarks(known: Targets, answer: Array, row: int) -> dict[str, Any]:
    """Return what else is worth saying about an answer [names]: probabilities that explain it."""
    if known.kind == "classes":
        return {
            "probability": float(answer.max()),
            "true_probability": float(answer[known.values[row]]),
        }
    if known.kind == "labels":
        true = known.values[row] > 0
        column = int(np.where(true, answer, 1 - answer).argmin())
        return {
            "label": known.names[column],
            "probability": float(answer[column]),
        }
    return {}


def training_views(
    loaded: Loaded, images: ImageSet, audited: Audit
) -> list[list[tuple[int, View]]]:
    """Return some training images, spread over the classes, each with the views to show of it."""
    plan = loaded.plan
    train = sorted(audited.split.train, key=lambda index: images.items[index].labels)
    count = min(len(train), SEEN if plan.views == 1 else SEEN_IN_VIEWS)
    spread = [train[(2 * place + 1) * len(train) // (2 * count)] for place in range(count)]
    numbers = range(min(plan.views, VIEWS))
    return [
        [(index, View(number, plan.augment) if number else PLAIN) for number in numbers]
        for index in spread
    ]


def calibration(answers: Array, known: Targets) -> list[dict[str, Any]]:
    """Return bins of probability with how often what they say is so; none for numbers.

    The probability is that of the predicted class, or of every label of every image. The bins are
    equally wide, those of `topwork.learn.metrics`; empty ones are left out.
    """
    if known.kind == "numbers":
        return []
    if known.kind == "classes":
        stated = answers.max(axis=1)
        so = answers.argmax(axis=1) == known.values
    else:
        stated, so = answers.ravel(), (known.values > 0).ravel()
    bins = np.clip(np.ceil(stated * BINS).astype(int) - 1, 0, BINS - 1)
    return [
        {
            "low": number / BINS,
            "high": (number + 1) / BINS,
            "probability": float(stated[bins == number].mean()),
            **proportion(int(so[bins == number].sum()), int((bins == number).sum())),
        }
        for number in np.unique(bins).tolist()
    ]


def scatter(answers: Array, known: Targets) -> list[dict[str, Any]]:
    """Return for the first numbers some pairs of true and predicted, and how the errors lie."""
    rows = np.unique(np.linspace(0, len(answers) - 1, POINTS).astype(int))
    found = []
    for column, name in enumerate(known.names[:NAMES]):
        true, said = known.values[:, column].astype(np.float64), answers[:, column]
        errors = said - true
        found.append(
            {
                "name": name,
                "points": [
                    [float(f"{value:.6g}") for value in pair]
                    for pair in zip(true[rows], said[rows], strict=True)
                ],
                "mean_error": float(errors.mean()),
                "deviation": float(errors.std()),
                "median_absolute_error": float(np.median(np.abs(errors))),
                "ninth_decile": float(np.quantile(np.abs(errors), 0.9)),
            }
        )
    return found
