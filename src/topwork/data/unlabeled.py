"""Images to learn from whether they have labels or not."""

from __future__ import annotations

import logging
import zipfile
from dataclasses import replace
from pathlib import Path

from topwork.data.audit import audit, look_over
from topwork.data.findings import Audit
from topwork.data.folders import open_zip_flat
from topwork.data.image_set import SIDE_OF, ImageSet, Item, numbers_of
from topwork.data.items import images_from_paths, open_images
from topwork.data.loading import Track, untracked
from topwork.data.split import split_items
from topwork.errors import DataError

log = logging.getLogger("topwork")


def open_photos(location: str | Path) -> ImageSet:
    """Return the labeled images at a location, or where they are not laid out by class, all images.

    What lies in a folder called test/ or val/ is left out of the latter: it is there to judge by.

    Args:
        location: as `topwork.data.items.open_images` takes it, or a folder or zip of images that
            lie in it anyhow.

    Raises:
        DataError: there are no images, or they cannot be read.
    """
    found = None
    try:
        images = open_images(location)
        if not all(name.lower() in SIDE_OF for name in images.classes):
            return images
        reason = f"{location}: its folders are the sides of a split, not classes"
    except DataError as error:
        reason, found = str(error), without_layout(Path(location))
        if found is None and Path(location).is_dir():
            raise DataError(
                f"{location}: no images in it; put some there, in sub-folders or not"
            ) from error
        if found is None:
            raise
    found = found or without_layout(Path(location)) or images
    kept = [n for n, item in enumerate(found.items) if not is_for_judging(item.name, location)]
    if not kept:
        raise DataError(f"{location}: all of its images are in test/ or val/; add images to train/")
    left = len(found) - len(kept)
    log.info(
        "%s; %d images are taken without labels%s",
        reason,
        len(kept),
        f", {left} in test/ or val/ left out" if left else "",
    )
    return unlabeled(found.subset(kept))


def unlabeled(images: ImageSet) -> ImageSet:
    """Return the same images without labels and sides."""
    return replace(images, items=tuple(Item(item.name) for item in images.items))


def without_layout(path: Path) -> ImageSet | None:
    """Return all images in a folder or zip; None if it is neither or has none."""
    try:
        if path.is_dir():
            return images_from_paths([path])
        if path.suffix.lower() == ".zip" and zipfile.is_zipfile(path):
            return open_zip_flat(path)
    except DataError:
        pass
    return None


def is_for_judging(name: str, location: str | Path) -> bool:
    """Say whether an image lies in a folder for testing or validation, somewhere below a location.

    >>> is_for_judging("photos/test/cat/1.png", "photos"), is_for_judging("test/1.png", "test")
    (True, False)
    """
    inner = name.removeprefix(Path(location).as_posix())
    return any(SIDE_OF.get(part.lower(), "train") != "train" for part in inner.split("/")[:-1])


def audit_photos(images: ImageSet, track: Track = untracked) -> Audit:
    """Look at images with labels as `topwork.data.audit.audit` does, at others as `look_over`.

    So what a fit of the same images would test with is left out here too. Where the labels may as
    well be classes as numbers, which a fit may divide in another way, both test parts are.

    Raises:
        DataError: if no image can be learned from.
    """
    if not any(item.labels for item in images.items):
        return look_over(images, track=track)
    numbers = bool(images.number_names)
    found = audit(images, numbers=numbers, track=track)
    if numbers or not are_numbers(images):
        return found
    others = split_items(images.items, found.digests, numbers=True).test
    if set(others) <= set(found.split.test):
        return found
    as_numbers = audit(images, numbers=True, track=track).split
    train = sorted(set(found.split.train) & set(as_numbers.train))
    test = sorted({*found.split.test, *as_numbers.test})
    return replace(found, split=replace(found.split, train=tuple(train), test=tuple(test)))


def are_numbers(images: ImageSet) -> bool:
    """Say whether all labels could be meant as numbers."""
    try:
        for index in range(len(images)):
            numbers_of(images, index)
    except DataError:
        return False
    return True
