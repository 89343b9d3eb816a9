"""Seven targets with a few training images per class and up to 400 test images, for `regret.py`.

The test images of a target are the same however many there are to train on, and 10 per class are
among the 40. What the data itself divides is pooled and divided anew, but for hand signs, whose
signers stay on one side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import sets
from topwork.data.folders import read_file
from topwork.data.image_set import ImageSet, Item
from topwork.data.items import open_images

MOST_TRAINED = 40  # images per class, which are set aside before the test images are drawn
MOST_TESTED = 400

PACKED = {"medical_mnist": "medical_mnist_64_tenth.zip", "mnist": "mnist.npz"}
FOLDERS = {
    "hymenoptera": ("hymenoptera/train", "hymenoptera/val"),
    "flowers12": ("flowers12/train", "flowers12/test"),
    "neu_steel": ("neu_steel",),
    "pacs": ("pacs/photo", "pacs/art_painting", "pacs/cartoon", "pacs/sketch"),
}


@dataclass(frozen=True)
class Target:
    """A set, and what a reader of the textbook would take it for.

    Attributes:
        name: of the set.
        similar: whether a person would call it similar to ImageNet: photos of things.
    """

    name: str
    similar: bool


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target("hymenoptera", similar=True),
        Target("flowers12", similar=True),
        Target("neu_steel", similar=False),
        Target("sign_digits", similar=False),
        Target("pacs", similar=False),  # one image of six is a photo, the others are drawn
        Target("medical_mnist", similar=False),
        Target("mnist", similar=False),
    )
}


def images_for(name: str, data: Path, per_class: int, seed: int) -> ImageSet:
    """Return a target's images, each with its side.

    Args:
        name: one of `TARGETS`.
        data: the folder of data sets.
        per_class: images per class to train on.
        seed: of the sides.
    """
    images = everything(name, data, seed)
    by_label: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(images.items):
        by_label[item.labels[0]].append(index)
    most_tested = MOST_TESTED // len(by_label)
    names = {item.name: index for index, item in enumerate(images.items)}
    sides: dict[int, str] = {}
    for indices in by_label.values():
        order = [names[drawn] for drawn in sets.drawn(map_names(images, indices), seed)]
        trained = [index for index in order if images.items[index].split != "test"]
        trained = trained[:MOST_TRAINED]
        left = [index for index in order if index not in trained]
        tested = [index for index in left if images.items[index].split != "train"]
        sides |= dict.fromkeys(trained[:per_class], "train")
        sides |= dict.fromkeys(tested[:most_tested], "test")
    items = tuple(replace(images.items[index], split=sides[index]) for index in sorted(sides))
    return replace(images, items=items)


def everything(name: str, data: Path, seed: int) -> ImageSet:
    """Return all images of a set; only those of hand signs have a side."""
    if name in PACKED:
        images = open_images(data / PACKED[name])
        return replace(images, items=tuple(replace(item, split=None) for item in images.items))
    rows = (
        sets.sign_digits(data, seed)
        if name == "sign_digits"
        else sets.given(data, dict.fromkeys(FOLDERS[name], ""))
    )
    items = (Item(row.path, row.labels, row.split or None, row.group or None) for row in rows)
    return ImageSet(name, tuple(items), partial(read_file, str(data)))


def map_names(images: ImageSet, indices: list[int]) -> list[str]:
    """Return the names of some images."""
    return [images.items[index].name for index in indices]
