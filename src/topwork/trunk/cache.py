"""The cache of codes: a store for each fingerprint, its rows keyed by the content of their images.

A store is a folder named after the key of its fingerprint. It holds ``facts.json`` and shards
(`topwork.trunk.shards`). Opening it checks every byte; another process may add shards meanwhile.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from topwork.data.files import write_atomically
from topwork.data.loading import map_ahead
from topwork.errors import CacheError
from topwork.trunk.fingerprint import key_of
from topwork.trunk.shards import ABSENT, Rows, Shard, read_shard, rows_of, write_shard

log = logging.getLogger("topwork")


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
        key: of the fingerprint.
        shards: the codes of each shard, mapped.
        known: from the digest of an image to its place, as in `Rows`.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self.shards: list[np.ndarray] = []
        self.known: dict[str, tuple[int, int]] = {}
        files = sorted(folder.glob("*.safetensors"))
        for _, shard in map_ahead(files, partial(read_shard, key=key)):
            if shard:
                self.take_in(shard)

    def __contains__(self, digest: str) -> bool:
        return digest in self.known

    def add(self, digests: Sequence[str], codes: np.ndarray) -> None:
        """Write one shard.

        Args:
            digests: the SHA-256 of each image's bytes, in hexadecimal.
            codes: float32 or uint8 [n, ...], a row for each.

        Raises:
            CacheError: if it cannot be written; what was there before is untouched.
        """
        try:
            self.take_in(write_shard(self.folder, self.key, digests, codes))
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def take_in(self, shard: Shard) -> None:
        """Make the rows of a shard known."""
        number = len(self.shards)
        self.shards.append(shard.codes)
        for row, digest in enumerate(shard.digests):
            self.known[digest.tobytes().hex()] = (number, row)

    def rows(self, digests: Sequence[str], absent: Collection[str] = ()) -> Rows:
        """Return the rows of some images; of those that are named as absent there are none.

        Raises:
            KeyError: for an image that the store does not hold.
        """
        nowhere = (ABSENT, ABSENT)
        places = [nowhere if digest in absent else self.known[digest] for digest in digests]
        like = self.shards[0] if self.shards else np.empty((0, 0), np.float32)
        return Rows(
            like.shape[1:],
            like.dtype,
            tuple(self.shards),
            np.array(places, np.int64).reshape(len(places), 2),
        )


def open_store(facts: dict[str, Any]) -> CodeStore:
    """Open the store of a fingerprint, making its folder if need be.

    Raises:
        CacheError: if its folder cannot be made.
    """
    key = key_of(facts)
    folder = cache_folder() / "codes" / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "facts.json").exists():
            write_atomically(folder / "facts.json", json.dumps(facts, indent=2).encode())
    except OSError as error:
        raise cannot_write(folder, error) from error
    return CodeStore(folder, key)


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
        images: rows.
        bytes: on the disk.
        written: when last, in seconds since 1970.
    """

    key: str
    cut: str
    pool: str
    view: str
    images: int
    bytes: int
    written: float


def list_stores() -> list[StoreSummary]:
    """Return what the cache holds, the most recently written first."""
    found = []
    for facts_file in (cache_folder() / "codes").glob("*/facts.json"):
        shards = list(facts_file.parent.glob("*.safetensors"))
        try:
            facts = json.loads(facts_file.read_text(encoding="utf-8"))
            summary = StoreSummary(
                key=facts_file.parent.name,
                cut=str(facts["cut"]),
                pool=str(facts["pool"]),
                view=name_of_view(facts.get("view")),
                images=sum(rows_of(shard) for shard in shards),
                bytes=sum(shard.stat().st_size for shard in shards),
                written=max((shard.stat().st_mtime for shard in shards), default=0.0),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("cache: %s cannot be listed (%r); remove its folder", facts_file, error)
            continue
        found.append(summary)
    return sorted(found, key=lambda store: -store.written)


def name_of_view(facts: Any) -> str:
    """Return a view's number as text, or "plain", from what `View.facts` gave."""
    return str(facts["number"]) if isinstance(facts, dict) else "plain"
