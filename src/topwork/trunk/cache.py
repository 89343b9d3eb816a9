"""The cache of codes: a store for each fingerprint, its rows keyed by the content of their images.

A store is a folder named after the key of its fingerprint. It holds shards
(`topwork.trunk.shard_file`) and a manifest. Several processes may use it at once: files appear
whole under a name that tells their content, and go only after others have come that hold all their
rows.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from topwork.errors import CacheError
from topwork.trunk.fingerprint import key_of
from topwork.trunk.limit import entries, make_room, require_limit
from topwork.trunk.manifest import (
    MANIFEST,
    Listed,
    note_use,
    read_manifest,
    shard_names,
    write_manifest,
)
from topwork.trunk.precision import fits_half
from topwork.trunk.shard_file import rows_of, write_shard
from topwork.trunk.shards import ABSENT, ROW_BITS, Rows, Shard, open_shard

log = logging.getLogger("topwork")

MERGED_BYTES = 32 * 2**20
"""Of codes in a shard that is made of smaller ones. Those of less than half are merged again."""

SETTLED = 0.3
"""Seconds after which another process that was merging has written what is there."""

_in_use: set[Path] = set()
"""Stores that this process has opened; they are never removed to make room."""


def cache_folder() -> Path:
    """Return where the cache lies: ``TOPWORK_CACHE``, else the platform's user cache folder."""
    if chosen := os.environ.get("TOPWORK_CACHE"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "topwork"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "topwork" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "topwork"


class CodeStore:
    """The cached codes of one fingerprint; opened by `open_store`.

    Attributes:
        folder: where its shards lie.
        facts: the fingerprint.
        key: of the fingerprint.
        always: whether what is read is checked each time, not once in a process.
        shards: the codes, mapped.
        known: from the digest of an image to its place: a number made of that of the shard, above,
            and that of the row, in the lowest `ROW_BITS`.
        names: of the files that were there when that was made.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], always: bool) -> None:
        self.folder, self.facts, self.key, self.always = folder, facts, folder.name, always
        self.shards: list[Shard] = []
        self.known: dict[str, int] = {}
        self.names: set[str] = set()

    def __contains__(self, digest: str) -> bool:
        return digest in self.known

    def add(self, digests: Sequence[str], codes: np.ndarray) -> None:
        """Write some rows; a store of float16 keeps those in float32 that would lose too much.

        Args:
            digests: the SHA-256 of each image's bytes, in hexadecimal.
            codes: float32 or uint8 [n, ...], a row for each.

        Raises:
            CacheError: if they cannot be written; what was there before is untouched.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            make_room(self.folder.parents[1], codes.nbytes, _in_use)
            for chosen, values in self.by_precision(codes):
                names = [digests[row] for row in chosen]
                write_shard(self.folder, self.key, names, values)
            self.refresh()
            self.record()

    def by_precision(self, codes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the numbers of rows that are kept alike, and these rows as they are kept."""
        if self.facts.get("dtype") != "float16":
            yield np.arange(len(codes)), codes
            return
        fits = fits_half(codes)
        if fits.any():
            yield np.flatnonzero(fits), codes[fits].astype(np.float16)
        if not fits.all():
            yield np.flatnonzero(~fits), codes[~fits].astype(np.float32)

    def refresh(self) -> None:
        """Take in what others have written since, and let go of what was found to be damaged.

        Rows in files that are gone stay as long as no other file has them: they are mapped.
        """
        names = shard_names(self.folder)
        kept = [shard for shard in self.shards if not shard.checks.damaged]
        here = [shard for shard in kept if shard.path.name in names]
        gone = [shard for shard in kept if shard.path.name not in names]
        opened = [
            shard
            for name in sorted(names - {shard.path.name for shard in here})
            if (shard := open_shard(self.folder / name, self.key, self.always))
        ]
        if len(here) == len(self.shards):
            index(opened, self.shards, self.known)
        else:
            shards, known = index([*here, *opened], [], {})
            needed = [shard for shard in gone if not known.keys() >= set(digests_of(shard))]
            self.shards, self.known = index(needed, shards, known)
        self.names = names
        if names - shard_names(self.folder):  # merged meanwhile, by another process
            self.refresh()

    def record(self, without: Collection[str] = ()) -> None:
        """Bring the manifest up to date with the folder.

        Args:
            without: names of shards that are about to be removed.

        Raises:
            OSError: if it cannot be written.
        """
        for _ in range(3):  # others may do the same, knowing other shards
            names = shard_names(self.folder) - set(without)
            listed = {
                shard.path.name: {"rows": len(shard.codes), "bytes": shard.file_bytes}
                for shard in self.shards
                if shard.path.name in names
            }
            with suppress(OSError, ValueError):
                if read_manifest(self.folder) == (self.facts, listed):
                    return
            write_manifest(self.folder, self.facts, listed)

    def merge(self) -> None:
        """Make many small shards few: the same bytes for the same rows, whoever wrote them when.

        Where there is no room for that they stay as they are.

        Raises:
            DamagedShard: if one of them turns out to be damaged; nothing else is lost.
        """
        try:
            self.refresh()
            for dtype in sorted({shard.codes.dtype for shard in self.shards}, key=str):
                self.merge_all_of(dtype)
        except OSError as error:
            log.warning("cache: the small shards of %s stay (%s)", self.folder, error)

    def merge_all_of(self, dtype: np.dtype) -> None:
        """Merge the small shards of one type of values."""
        small = {
            number: shard.path
            for number, shard in enumerate(self.shards)
            if shard.codes.dtype == dtype
            and shard.bytes < MERGED_BYTES // 2
            and shard.path.name in self.names  # a later look need not fit what is known
        }
        if len(small) < 2:
            return
        digests = sorted(key for key, place in self.known.items() if place >> ROW_BITS in small)
        rows = self.rows(digests)
        size = max(1, MERGED_BYTES // max(1, self.shards[min(small)].codes[:1].nbytes))
        written = {
            write_shard(
                self.folder,
                self.key,
                digests[first : first + size],
                rows.take(range(len(digests))[first : first + size]).astype(dtype, copy=False),
            )
            for first in range(0, len(digests), size)
        }
        going = set(small.values()) - written
        self.refresh()
        self.record(without={path.name for path in going})
        for path in going:
            with suppress(OSError):  # another process was first, or still has it mapped (Windows)
                path.unlink()
        self.refresh()
        self.record()

    def rows(self, digests: Sequence[str], absent: Collection[str] = ()) -> Rows:
        """Return the rows of some images; of those that are named as absent there are none.

        Raises:
            KeyError: for an image that the store does not hold.
        """
        places = [ABSENT if digest in absent else self.known[digest] for digest in digests]
        kinds = {shard.codes.dtype for shard in self.shards} or {np.dtype(np.float32)}
        return Rows(
            self.shards[0].codes.shape[1:] if self.shards else (0,),
            np.result_type(*kinds),
            tuple(self.shards),
            np.array(places, np.int64),
        )


def index(
    opened: Sequence[Shard], shards: list[Shard], known: dict[str, int]
) -> tuple[list[Shard], dict[str, int]]:
    """Append shards to others and make their rows known, but for those that are already."""
    for shard in opened:
        first = len(shards) << ROW_BITS
        shards.append(shard)
        for row, digest in enumerate(digests_of(shard)):
            known.setdefault(digest, first + row)
    return shards, known


def digests_of(shard: Shard) -> list[str]:
    """Return the digest of each row's image, in hexadecimal."""
    text = shard.content.digests.tobytes().hex()
    return [text[start : start + 64] for start in range(0, len(text), 64)]


def open_store(facts: dict[str, Any], verify: str = "once") -> CodeStore:
    """Open the store of a fingerprint, making its folder if need be.

    Args:
        facts: the fingerprint.
        verify: check what is read "once" in a process, or "always".

    Raises:
        CacheError: if its folder cannot be made.
    """
    facts = json.loads(json.dumps(facts))  # as the manifest has them
    folder = cache_folder() / "codes" / key_of(facts)
    require_limit()
    _in_use.add(folder)
    store = CodeStore(folder, facts, always=verify == "always")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        gone = missing_from(folder)
        if gone:
            time.sleep(SETTLED)
            for name in sorted(gone & missing_from(folder)):
                log.warning("cache: %s is gone; what it held is computed again", folder / name)
        store.refresh()
        store.record()
    note_use(folder)
    return store


def missing_from(folder: Path) -> set[str]:
    """Return the shards that a store's manifest lists, and that are neither there nor set aside."""
    gone = listed_in(folder).keys() - shard_names(folder)
    return {name for name in gone if not (folder / name).with_suffix(".damaged").exists()}


def listed_in(folder: Path) -> Listed:
    """Return the shards that a store's manifest lists; a damaged one is named and lists none."""
    try:
        return read_manifest(folder)[1]
    except FileNotFoundError:
        return {}
    except ValueError as error:
        log.warning("cache: %s; it is written anew", error)
        return {}


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn failures to write into an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise cannot_write(folder, error) from error


def cannot_write(path: Path, error: OSError) -> CacheError:
    """Return the error for a cache that cannot be written."""
    return CacheError(
        f"cannot write to the cache at {path}: {error.strerror or error}; free some space, or set"
        " TOPWORK_CACHE to a folder that can be written"
    )


@dataclass(frozen=True)
class StoreSummary:
    """One line of ``topwork cache ls``.

    Attributes:
        key: of the fingerprint.
        cut: the name of the cut point.
        pool: how its tensor is pooled.
        view: "plain", or the number of the augmented view.
        dtype: of its values.
        runtime: what ran the trunk; "" for pixels, for which none ran.
        images: rows.
        bytes: on the disk, of its shards.
        written: when last, in seconds since 1970.
        used: when last, in seconds since 1970.
    """

    key: str
    cut: str
    pool: str
    view: str
    dtype: str
    runtime: str
    images: int
    bytes: int
    written: float
    used: float


def list_stores() -> list[StoreSummary]:
    """Return what the cache holds, the most recently written first."""
    found = []
    for folder in entries(cache_folder() / "codes"):
        if not (folder / MANIFEST).exists():  # just begun, or no store
            continue
        try:
            found.append(summary_of(folder))
        except (OSError, ValueError, LookupError, TypeError) as error:
            log.warning("cache: %s cannot be listed (%r); see topwork cache repair", folder, error)
    return sorted(found, key=lambda store: (-store.written, store.key))


def summary_of(folder: Path) -> StoreSummary:
    """Return the summary of one store.

    Raises:
        OSError, ValueError, LookupError, TypeError: if its manifest cannot be used.
    """
    facts, listed = read_manifest(folder)
    shards = {folder / name: listed.get(name) for name in shard_names(folder)}
    return StoreSummary(
        key=folder.name,
        cut=str(facts["cut"]),
        pool=str(facts["pool"]),
        view=name_of_view(facts.get("view")),
        dtype=str(facts.get("dtype", "float32")),
        runtime=str(facts.get("runtime", {}).get("name", "")),
        images=sum(known["rows"] if known else rows_of(path) for path, known in shards.items()),
        bytes=sum(path.stat().st_size for path in shards),
        written=max((path.stat().st_mtime for path in shards), default=0.0),
        used=(folder / MANIFEST).stat().st_mtime,
    )


def name_of_view(facts: Any) -> str:
    """Return a view's number as text, or "plain", from what `View.facts` gave."""
    return str(facts["number"]) if isinstance(facts, dict) else "plain"
