"""From what the user names to a set of images: folders, archives, arrays, manifests, single files.

open_images          labeled data: a folder, .zip, .npz, .csv or .parquet
images_from_arrays   labeled data in memory
images_from_paths    unlabeled images, for prediction
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from topwork.data.arrays import images_from_arrays, open_npz
from topwork.data.decode import IMAGE_EXTENSIONS
from topwork.data.folders import open_folder, open_zip, read_file, refuse_unreadable, walk
from topwork.data.image_set import ImageSet, Item
from topwork.data.manifests import open_manifest
from topwork.errors import DataError, UsageError, did_you_mean

__all__ = ["ImageSet", "Item", "images_from_arrays", "images_from_paths", "open_images"]

_MANIFESTS = (".csv", ".tsv", ".parquet", ".pq")
_PACKED = (".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")


def open_images(
    location: str | Path,
    *,
    path_column: str | None = None,
    label_columns: Sequence[str] = (),
    split_column: str | None = None,
    group_column: str | None = None,
    label_separator: str | None = None,
    numbers: bool = False,
    least_classes: int = 2,
) -> ImageSet:
    """Return the labeled images that lie at a location, without decoding any.

    Args:
        location: a folder with one sub-folder per class, alone or under train/, val/ and test/; a
            zip of such a folder; an .npz file of arrays; a CSV or Parquet manifest.
        path_column: the manifest's column of image paths, relative to the manifest.
        label_columns: its column of class names, or several columns of 0 and 1 (multi-label).
        label_separator: what stands between several class names in one cell, such as ";": then
            the images are multi-label.
        numbers: the label columns hold numbers, to be learned as such. Folders, archives and
            arrays need not be told: their labels may be numbers anyway.
        least_classes: how many there must be: two to learn from, one to score a model.
        split_column: its column of train, val and test.
        group_column: its column of what must not be divided, such as a patient.

    Raises:
        DataError: with what is wrong there, and what to do.
        UsageError: a column is named for data that has none.
    """
    path = Path(location)
    suffix = path.suffix.lower()
    try:
        is_folder, is_there = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be looked at ({error})") from error
    if not is_there:
        raise DataError(f"{path}: no such file or folder{_sibling(path)}")
    if not is_folder and suffix in _MANIFESTS:
        return open_manifest(
            path,
            path_column=path_column,
            label_columns=label_columns,
            split_column=split_column,
            group_column=group_column,
            label_separator=label_separator,
            numbers=numbers,
            least_classes=least_classes,
        )
    if path_column or label_columns or split_column or group_column or label_separator:
        raise UsageError(f"{path}: only a CSV or Parquet manifest has columns; name none")
    if is_folder:
        return open_folder(path, least_classes)
    if suffix == ".zip":
        return open_zip(path, least_classes)
    if suffix == ".npz":
        return open_npz(path, least_classes)
    if suffix in IMAGE_EXTENSIONS:
        raise DataError(f"{path}: a single image; give the folder that holds the class folders")
    if suffix in _PACKED:
        raise DataError(f"{path}: unpack this archive and give the folder, or pack it as .zip")
    raise DataError(
        f"{path}: unknown kind of data {suffix or '(no extension)'}; "
        f"give a folder, .zip, .npz, .csv, .tsv or .parquet"
    )


def images_from_paths(paths: Sequence[str | Path]) -> ImageSet:
    """Return unlabeled images: files as they are named, folders walked for image extensions.

    Files keep the order given, those of a folder are sorted; what is named twice counts once.

    Raises:
        DataError: a path does not exist, or there is no image in any of them.
    """
    names: dict[str, None] = {}
    skipped: list[tuple[str, str]] = []
    for path in map(Path, paths):
        if path.is_dir():
            inner, unusable = walk(str(path))
            found = [
                name for name in inner if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS
            ]
            names.update(dict.fromkeys((path / name).as_posix() for name in found))
            skipped += [((path / name).as_posix(), reason) for name, reason in unusable]
        elif path.exists():
            names[path.as_posix()] = None
        else:
            raise DataError(f"{path}: no such file or folder{_sibling(path)}")
    location = ", ".join(map(str, paths[:3])) + (", ..." if len(paths) > 3 else "")
    if not names:
        raise DataError(f"{location or 'no paths'}: no images there; give image files or folders")
    items = tuple(Item(name) for name in names)
    images = ImageSet(location, items, partial(read_file, ""), tuple(skipped))
    refuse_unreadable(images, "")
    return images


def _sibling(path: Path) -> str:
    """Suggest what lies beside a path that does not exist."""
    try:
        near = did_you_mean(path.name, os.listdir(path.parent))
    except OSError:
        near = ""
    return near or "; check the path"
