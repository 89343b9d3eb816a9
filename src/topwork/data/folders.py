"""Class folders on disk or in a zip archive, alone or under train/, val/ and test/."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from topwork.data.decode import IMAGE_EXTENSIONS
from topwork.data.image_set import SIDE_OF, ImageSet, Item, require_classes
from topwork.errors import DataError, ImageError

Skipped = list[tuple[str, str]]

# An image file larger than this is a mistake or an attack.
MAX_FILE_BYTES = 1 << 30

_LITTER = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "@eadir"}
_MANIFESTS = (".csv", ".tsv", ".parquet")


def open_folder(path: Path, least_classes: int = 2) -> ImageSet:
    """Return the images in a folder with one sub-folder per class, of which so many are needed.

    Raises:
        DataError: it cannot be read, is empty, or is not laid out by class.
    """
    names, skipped = walk(str(path))
    images = _arranged(names, skipped, str(path), "", partial(read_file, str(path)), least_classes)
    refuse_unreadable(images, str(path))
    return images


def open_zip(path: Path, least_classes: int = 2) -> ImageSet:
    """Return the images in a zip of such a folder, with or without one folder around it.

    Nothing is extracted. So many classes are needed.

    Raises:
        DataError: as for a folder, or it is no zip archive, or is encrypted.
    """
    source = _zip_source(path)
    kept = [name for name in source.names if not any(map(_is_litter, name.split("/")))]
    skipped = [
        (name, "several times in the archive; the last is taken") for name in source.repeated
    ]
    return _arranged(kept, skipped, str(path), _wrapper(kept), source, least_classes)


def open_zip_flat(path: Path) -> ImageSet:
    """Return all images in a zip, unlabeled, wherever in it they lie.

    Raises:
        DataError: there are none, or it is no zip archive, or is encrypted.
    """
    source = _zip_source(path)
    names = (name for name in source.names if not any(map(_is_litter, name.split("/"))))
    items = tuple(Item(name) for name in sorted(names) if _is_image(name))
    if not items:
        raise DataError(f"{path}: no images in it; give a zip of image files")
    return ImageSet(str(path), items, source)


def _zip_source(path: Path) -> ZipSource:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except PermissionError as error:
        raise DataError(f"{path}: no permission to read it") from error
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"{path}: not a zip archive, or damaged; download or pack it again"
        ) from error
    if any(entry.flag_bits & 1 for entry in entries):
        raise DataError(f"{path}: the archive is encrypted; unpack it and give the folder")
    return ZipSource(path, entries)


class ZipSource:
    """Reads single members of a zip archive.

    Each read opens the file anew, as for images that lie in a folder: so there is no position in
    the file that threads or forked processes would share.
    """

    def __init__(self, path: Path, entries: Iterable[zipfile.ZipInfo]) -> None:
        self._path = str(path)
        self._members: dict[str, tuple[int, int, int, int, int]] = {}
        self.repeated: list[str] = []
        for entry in entries:
            name = entry.filename.replace("\\", "/").removeprefix("./")
            if name in self._members:
                self.repeated.append(name)
            self._members[name] = (
                *(entry.header_offset, entry.compress_size, entry.file_size),
                *(entry.compress_type, entry.CRC),
            )

    @property
    def names(self) -> list[str]:
        """All members, folders with a slash at their end."""
        return list(self._members)

    def __call__(self, name: str) -> bytes:
        """Return the unpacked bytes of one member."""
        offset, packed_size, size, method, checksum = self._members[name]
        if size > MAX_FILE_BYTES:
            raise ImageError(name, f"larger than {MAX_FILE_BYTES >> 20} MiB")
        with open(self._path, "rb") as file:
            file.seek(offset)
            header = file.read(30)  # the local header's name and extra field may differ in length
            if header[:4] != b"PK\x03\x04" or len(header) < 30:
                raise ImageError(name, "damaged archive")
            name_length, extra_length = struct.unpack_from("<HH", header, 26)
            file.seek(name_length + extra_length, os.SEEK_CUR)
            data = file.read(packed_size)
        if method == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            except zlib.error as error:
                raise ImageError(name, "damaged archive") from error
        elif method != zipfile.ZIP_STORED:
            raise ImageError(name, "packed by a method other than deflate; pack it again")
        if len(data) != size or zlib.crc32(data) != checksum:
            raise ImageError(name, "damaged archive")
        return data


def read_file(root: str, name: str) -> bytes:
    """Return the bytes of a file below `root`."""
    with open(os.path.join(root, name), "rb") as file:
        if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
            raise ImageError(name, f"larger than {MAX_FILE_BYTES >> 20} MiB")
        return file.read()


def walk(root: str) -> tuple[list[str], Skipped]:
    """List everything below a folder: posix names, folders with a slash at their end; sorted.

    Hidden files and the litter of file managers are left out. No file is looked at, so a million
    of them take seconds. Links are followed, but to no folder twice.

    Raises:
        DataError: `root` itself cannot be listed.
    """
    names: list[str] = []
    skipped: Skipped = []
    linked: set[str] = set()
    pending = [""]
    while pending:
        prefix = pending.pop()
        try:
            with os.scandir(os.path.join(root, prefix)) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            reason = "no permission to read this folder"
            if not isinstance(error, PermissionError):
                reason = f"this folder cannot be listed ({error.strerror})"
            if not prefix:
                raise DataError(f"{root}: {reason}") from error
            skipped.append((prefix, reason))
            continue
        for entry in entries:
            if _is_litter(entry.name):
                continue
            name = prefix + entry.name
            reason = _unusable(entry, linked)
            if reason:
                skipped.append((_printable(name), reason))
            elif entry.is_dir():
                names.append(name + "/")
                pending.append(name + "/")
            else:
                names.append(name)
    return sorted(names), sorted(skipped)


def refuse_unreadable(images: ImageSet, root: str) -> None:
    """Stop early where the user may read no image at all; single ones are the audit's matter.

    Raises:
        DataError: not one of the files may be read.
    """
    paths = (os.path.join(root, item.name) for item in images.items)
    if not any(os.access(path, os.R_OK) for path in paths):
        raise DataError(
            f"{images.location}: no permission to read any of its {len(images)} images; "
            f"change the files' permissions"
        )


def _is_litter(part: str) -> bool:
    return part.startswith(".") or part.lower() in _LITTER


def _unusable(entry: os.DirEntry[str], linked: set[str]) -> str:
    """Say why an entry of a folder is neither listed nor entered, or return an empty string."""
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8"
    if entry.is_symlink():
        target = os.path.realpath(entry.path)
        if not os.path.exists(target):
            return "a broken link"
        if os.path.isdir(target):
            here = os.path.realpath(os.path.dirname(entry.path))
            if target in linked or (here + os.sep).startswith(target + os.sep):
                return "a link to a folder that is listed already"
            linked.add(target)
    if not entry.is_dir() and not entry.is_file():
        return "neither a file nor a folder"
    return ""


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _wrapper(names: list[str]) -> str:
    """Return the prefix of the one folder that surrounds everything in an archive, if there is."""
    tops = {name.split("/", 1)[0] for name in names}
    if len(tops) != 1 or not any(name.count("/") > 1 and _is_image(name) for name in names):
        return ""
    (top,) = tops
    return "" if SIDE_OF.get(top.lower()) == "train" else top + "/"


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def _arranged(
    names: list[str],
    skipped: Skipped,
    location: str,
    prefix: str,
    source: partial[bytes] | ZipSource,
    least_classes: int,
) -> ImageSet:
    """Tell from the names alone which class and which side each image belongs to."""
    inner = [name[len(prefix) :] for name in names]
    tops = {path.split("/", 1)[0] for path in inner if "/" in path}
    sides = _sides(tops, location)
    depth = 2 if sides else 1  # so many folders name the side and the class
    items: list[Item] = []
    stray = list(skipped)
    for name, path in zip(names, inner, strict=True):
        *folders, file = path.split("/")
        if not file or (sides and folders and folders[0] not in sides):
            continue
        if len(folders) < depth:
            if _is_image(file):  # a README out here is nobody's image
                stray.append((name, "not in a class folder"))
        elif _is_image(file):
            items.append(Item(name, (folders[depth - 1],), sides[folders[0]] if sides else None))
        else:
            stray.append((name, "not an image extension"))
    if sides:
        reason = f"beside {' and '.join(f'{side}/' for side in sorted(sides))}"
        stray += [(f"{prefix}{top}/", reason) for top in tops - sides.keys()]
    unlisted = {name for name, _ in skipped}
    stray += [
        (name, "no images in this folder")
        for name in _empty_class_folders(names, items, prefix, depth)
        if name not in unlisted and (not sides or name[len(prefix) :].split("/")[0] in sides)
    ]
    images = ImageSet(location, tuple(sorted(items, key=_by_name)), source, tuple(sorted(stray)))
    return _checked(images, inner, least_classes)


def _by_name(item: Item) -> str:
    return item.name


def _sides(tops: set[str], location: str) -> dict[str, str]:
    """Return which top folders are sides of a split; none if they are all classes.

    `train` next to `val` or `test` is a split; next to `bus` and `car` it is a means of transport.
    """
    sides = {top: SIDE_OF[top.lower()] for top in tops if top.lower() in SIDE_OF}
    kinds = set(sides.values())
    if "train" in kinds and (len(kinds) > 1 or len(sides) == len(tops)):
        return sides
    if sides and len(sides) == len(tops):
        given = " and ".join(f"{side}/" for side in sorted(sides))
        raise DataError(f"{location}: has {given} but no train/; add it, or give one folder alone")
    return {}


def _empty_class_folders(names: list[str], items: list[Item], prefix: str, depth: int) -> list[str]:
    level = prefix.count("/") + depth
    filled = {"/".join(item.name.split("/")[:level]) + "/" for item in items}
    folders = [name for name in names if name.endswith("/") and name.count("/") == level]
    return [name for name in folders if name not in filled]


def _checked(images: ImageSet, inner: list[str], least_classes: int) -> ImageSet:
    """Refuse what is not laid out by class, and say what would help."""
    location = images.location
    manifest = next((name for name in inner if name.lower().endswith(_MANIFESTS)), None)
    hint = ""
    if manifest:
        is_packed = location.lower().endswith(".zip")
        hint = f"; if it has a manifest, give that: {'unpacked, ' if is_packed else location + '/'}"
        hint += manifest
    if not inner:
        raise DataError(f"{location}: empty; put one sub-folder of images per class into it")
    if not any(_is_image(name) for name in inner):
        raise DataError(
            f"{location}: no images in it; expected one sub-folder of images per class{hint}"
        )
    if not images.items:
        raise DataError(
            f"{location}: no class sub-folders, the images lie directly in it; "
            f"sort them into one sub-folder per class{hint}"
        )
    if len(images.classes) == 1 and not hint:
        (label,) = images.classes
        if any(item.name.rsplit("/", 2)[-2] != label for item in images.items):
            hint = f"; if the folders inside {label}/ are the classes, give that folder alone"
    return require_classes(images, least_classes, hint)
