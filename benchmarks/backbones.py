"""Backbones that benchmarks pretrain once and find again on their next run."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import topwork
from topwork.data.image_set import ImageSet
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
            another, as when a default has changed since.
        **options: for `topwork.pretrain`.
    """
    wanted = whole(method, recipe)
    file = folder / "record.json"
    if not file.exists():
        return topwork.pretrain(data, folder, method=method, recipe=recipe, resume=True, **options)
    record = json.loads(file.read_text(encoding="utf-8"))
    if whole(method, record["recipe"]) != wanted:
        sys.exit(f"{folder} was made by another recipe; remove it and its rows, or name another")
    return dict(record)


def whole(method: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe with what it leaves to today's defaults, as plain data.

    What is missing in the record of an older version was not there to be chosen then.
    """
    return settle_recipe(method, recipe_of(method), recipe, None, None)[0].to_dict()
