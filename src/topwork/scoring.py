"""Scoring: what a model that is shipped says of images, and how far that lies from its training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from topwork.data.audit import Audit
from topwork.data.image_set import ImageSet
from topwork.data.items import open_images
from topwork.data.loading import Track, untracked
from topwork.errors import DataError, ImageError
from topwork.learn.fit import Fitted
from topwork.learn.targets import Targets, targets_of
from topwork.network.answers import answers as answers_to
from topwork.network.predictor import Predictor, load
from topwork.report.record import Clock, digests_learned, given_groups, results

COMPARED = 50
"""Test images that go through the trunk once more, for comparison."""


def evaluate_model(
    model: str | Path,
    data: str | Path | ImageSet,
    *,
    seed: int = 0,
    device: str = "auto",
    track: Track = untracked,
) -> dict[str, Any]:
    """Score a model folder on labeled images, all of them, whatever their split.

    Returns:
        plain data: as the record of `fit`, ``test`` included; ``left_out``, names and reasons of
        what is not scored; ``learned_from``, how many of the images the fit has seen (None where
        its run folder is not around the model).

    Raises:
        DataError: if the images have labels that the model does not know.
        ModelError: if the model cannot be opened.
    """
    clock = Clock()
    predictor = load(model, device)
    numbers = predictor.kind == "numbers"
    images = (
        data if isinstance(data, ImageSet) else open_images(data, numbers=numbers, least_classes=1)
    )
    tested, answers, lost = score(predictor, images, tuple(range(len(images.items))), track)
    if not tested:
        raise DataError(f"{images.location}: none of the images can be read")
    head, outputs = predictor.opened.plan.head, predictor.outputs
    targets = targets_of(images, tested, head, names=predictor.labels, outputs=outputs)
    return {
        **results(answers, targets, seed, given_groups(images, tested)),
        "seconds": clock.total(),
        "unreadable": len(lost),
        "left_out": [list(entry) for entry in (*images.skipped, *lost)],
        "learned_from": learned_from(Path(model), images, tested),
        "model": str(model),
    }


def score(
    predictor: Predictor,
    images: ImageSet,
    indices: tuple[int, ...],
    track: Track,
    audited: Audit | None = None,
) -> tuple[list[int], np.ndarray, list[tuple[str, str]]]:
    """Predict some images.

    Args:
        predictor: the model.
        images: where they come from.
        indices: which of them.
        track: shows progress.
        audited: if given, an image whose bytes are no longer those audited is refused.

    Returns:
        those that could be read, their probabilities [N, C], and the others with the reason.
    """
    tested, rows, lost = [], [], []
    digests = [str(audited.digests[index]) for index in indices] if audited else None
    for index, result in predictor.predict_set(images, indices, digests, track):
        if isinstance(result, ImageError):
            lost.append((result.name, result.reason))
        else:
            tested.append(index)
            rows.append(result)
    return tested, np.array(rows).reshape(len(rows), len(predictor.labels)), lost


def compare_with_cache(
    fitted: Fitted, tested: list[int], targets: Targets, shipped: np.ndarray, seed: int
) -> dict[str, Any]:
    """Tell how far the score by way of the cache lies from that of the shipped model.

    Both are of the same test images: all, or where there are many, some spread over them evenly.
    """
    rows = np.unique(np.linspace(0, len(tested) - 1, COMPARED).astype(int))
    some = replace(targets, values=targets.values[rows])
    scores = fitted.scores([tested[row] for row in rows]).cpu().numpy()
    cached = answers_to(fitted.samples.loaded.plan.head, scores)
    return {
        "value": results(cached, some, seed)["value"],
        "shipped": results(shipped[rows], some, seed)["value"],
        "largest_difference": float(np.abs(cached - shipped[rows]).max()),
        "compared": len(rows),
        "runtimes": list(fitted.samples.runtimes),
        "decoding": fitted.samples.execution.decoding,
        "keys": list(fitted.samples.keys),
        "computed": fitted.samples.computed,
        "images": len(fitted.indices) + len(rows),
    }


def learned_from(model: Path, images: ImageSet, indices: Sequence[int]) -> int | None:
    """Return how many of some images the fit of a model learned from, by their bytes.

    None where no run lies around the model that would tell.
    """
    learned = digests_learned(model.parent if model.name == "model" else model)
    if learned is None:
        return None
    found = (hashlib.sha256(images.read(index)).hexdigest() for index in indices)
    return sum(digest in learned for digest in found)
