"""Images to learn from whether they have labels or not."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

from topwork.data.audit import audit, look_over
from topwork.data.findings import Audit
from topwork.data.folders import open_zip_flat
from topwork.data.image_set import ImageSet
from topwork.data.items import images_from_paths, open_images
from topwork.data.loading import Track, untracked
from topwork.errors import DataError

log = logging.getLogger("topwork")


def open_photos(location: str | Path) -> ImageSet:
    """Return the labeled images at a location, or where they are not laid out by class, all images.

    Args:
        location: as `topwork.data.items.open_images` takes it, or a folder or zip of images that
            lie in it anyhow.

    Raises:
        DataError: there are no images, or they cannot be read.
    """
    try:
        return open_images(location)
    except DataError as error:
        path = Path(location)
        try:
            if path.is_dir():
                images = images_from_paths([path])
            elif zipfile.is_zipfile(path) and path.suffix.lower() == ".zip":
                images = open_zip_flat(path)
            else:
                raise error
        except DataError:
            raise error from None
        log.info("%s; its %d images are taken without labels", error, len(images))
        return images


def audit_photos(images: ImageSet, track: Track = untracked) -> Audit:
    """Look at images with labels as `topwork.data.audit.audit` does, at others as `look_over`.

    So what a fit of the same images would test with is left out here too.

    Raises:
        DataError: if no image can be learned from.
    """
    if any(item.labels for item in images.items):
        return audit(images, track=track)
    return look_over(images, track=track)
