"""Backbones that benchmarks pretrain once and find again on their next run."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import topwork
from topwork.data.image_set import ImageSet
from topwork.network.zoo import Backbone, find_backbone
from topwork.pretraining.methods import recipe_of
from topwork.pretraining.request import settle_recipe


def made(
    folder: Path, data: Path | ImageSet, method: str, recipe: Mapping[str, Any], **options: Any
) -> dict[str, Any]:
    """Return the record of a backbone: of the one that is there, or of a new one.

    Args:
        folder: of the backbone.
        data: what it is made from; must be the same as before.
        method: as in `topwork.pretrain`.
        recipe: changes to the method's recipe; leaves with a line if one that is there was made by
            another, as when a default has changed since, of another network, size or seed.
        **options: for `topwork.pretrain`.
    """
    file = folder / "record.json"
    if not file.exists():
        return topwork.pretrain(data, folder, method=method, recipe=recipe, resume=True, **options)
    record = json.loads(file.read_text(encoding="utf-8"))
    if not is_of(record, method, recipe, **options):
        sys.exit(f"{folder} was made in another way; remove it and its rows, or name another")
    return dict(record)


def is_of(
    record: Mapping[str, Any],
    method: str,
    recipe: Mapping[str, Any],
    *,
    backbone: str | Backbone,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    **others: Any,
) -> bool:
    """Say whether a record is that of a backbone made in a given way; other options do not count.

    >>> is_of({"method": "rbm"}, "gan", {}, backbone="topwork:dense")
    False
    """
    if record["method"] != method:
        return False
    if not isinstance(backbone, Backbone):
        backbone = find_backbone(backbone)
    chosen, arguments = whole(method, recipe)
    wanted = {**backbone.spec.arguments, **arguments}
    wanted.pop("num_classes", None)  # as many as the method needs, whatever was asked for
    spec, seen = record["architecture"], record["preprocessing"]["size"]
    return (
        chosen == whole(method, record["recipe"])[0]
        and spec["architecture"] == backbone.spec.architecture
        and wanted == {key: spec["arguments"].get(key) for key in wanted}
        and seen == list(size or backbone.preprocessing.size)
        and record["seed"] == seed
    )


def training_seconds(record: Mapping[str, Any]) -> float:
    """Return how long a pretraining took, halts left out: each epoch as long as its stage's median.

    >>> epochs = [{"stage": "a", "seconds": seconds} for seconds in (2.0, 3.0, 900.0)]
    >>> training_seconds({"epochs": epochs})
    9.0
    """
    stages: dict[str, list[float]] = {}
    for epoch in record["epochs"]:
        stages.setdefault(epoch["stage"], []).append(epoch["seconds"])
    return sum(len(seconds) * median(seconds) for seconds in stages.values())


def digest(*settings: Any) -> str:
    """Return what tells settings from others: a part of the SHA-256 of how they are printed."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:12]


def whole(method: str, recipe: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a recipe with what it leaves to today's defaults, and the network's arguments.

    What is missing in the record of an older version was not there to be chosen then.
    """
    chosen, arguments = settle_recipe(method, recipe_of(method), recipe, None, None)
    return chosen.to_dict(), arguments
