"""The cache of codes: shards of rows that are keyed by the content of their images.

A store is a folder named after the key of its fingerprint. It holds ``facts.json`` and shards. A
shard is a safetensors file with ``codes`` [n, D] float32 and ``digests`` [n, 32] uint8 (the
SHA-256 of each row's image), and is named after the SHA-256 of its own bytes: so a shard that
was cut off, flipped, renamed or swapped shows when it is read, and two processes that write the
same shard write the same file. Shards are written under another name first, then renamed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from topwork.errors import CacheError
from topwork.trunk.fingerprint import key_of

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
    """The cached codes of one fingerprint; opened by `open_store`."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self.known: dict[str, np.ndarray] = {}
        for shard in sorted(folder.glob("*.safetensors")):
            self.known.update(read_shard(shard, key))

    def __contains__(self, digest: str) -> bool:
        return digest in self.known

    def add(self, digests: Sequence[str], codes: np.ndarray) -> None:
        """Write one shard.

        Args:
            digests: the SHA-256 of each image's bytes, in hexadecimal.
            codes: float32 [n, D], a row for each.

        Raises:
            CacheError: if it cannot be written; what was there before is untouched.
        """
        raw = np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(len(digests), 32)
        data = safetensors.numpy.save(
            {"codes": np.ascontiguousarray(codes), "digests": raw.copy()}, {"key": self.key}
        )
        write_atomically(self.folder / f"{hashlib.sha256(data).hexdigest()}.safetensors", data)
        self.known.update(zip(digests, codes, strict=True))

    def rows(self, digests: Sequence[str], absent: Collection[str] = ()) -> np.ndarray:
        """Return the rows of some images, [n, D]; zeros for those that are named as absent."""
        width = len(next(iter(self.known.values()))) if self.known else 0
        zero = np.zeros(width, np.float32)
        return np.stack([zero if d in absent else self.known[d] for d in digests])


def open_store(facts: dict[str, Any]) -> CodeStore:
    """Open the store of a fingerprint, making its folder if need be.

    Raises:
        CacheError: if the folder cannot be made.
    """
    key = key_of(facts)
    folder = cache_folder() / "codes" / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    if not (folder / "facts.json").exists():
        write_atomically(folder / "facts.json", json.dumps(facts, indent=2).encode())
    return CodeStore(folder, key)


def read_shard(path: Path, key: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the (digest, row) of a shard; a damaged one is set aside, named, and yields nothing."""
    try:
        data = path.read_bytes()
    except OSError as error:
        log.warning("cache: %s cannot be read (%s); its codes are computed again", path, error)
        return
    problem = problem_with(path, data, key)
    if problem:
        with suppress(OSError):  # read-only, or another process was first; it is not used anyway
            os.replace(path, path.with_suffix(".damaged"))
        log.warning("cache: %s %s; set aside, its codes are computed again", path, problem)
        return
    tensors = safetensors.numpy.load(data)
    for digest, row in zip(tensors["digests"], tensors["codes"], strict=True):
        yield digest.tobytes().hex(), row


def problem_with(path: Path, data: bytes, key: str) -> str | None:
    """Say what is wrong with a shard's bytes, if anything."""
    if hashlib.sha256(data).hexdigest() != path.stem:
        return "is damaged (its bytes do not match its name)"
    try:
        metadata = header(data).get("__metadata__", {})
    except (SafetensorError, ValueError):
        return "is no safetensors file"
    return None if metadata.get("key") == key else "belongs to another fingerprint"


def header(data: bytes) -> dict[str, Any]:
    """Return the header of a safetensors file: 8 bytes of length, then JSON."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, even after a crash.

    Raises:
        CacheError: if it cannot be written; nothing is left behind.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> CacheError:
    """Return the error for a cache that cannot be written."""
    return CacheError(
        f"cannot write to the cache at {path}: {error.strerror or error}; free some space, or set"
        " TOPWORK_CACHE to a folder that can be written"
    )


@dataclass(frozen=True)
class StoreSummary:
    """One line of ``topwork cache ls``."""

    key: str
    cut: str
    pool: str
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
                images=sum(rows_of(shard) for shard in shards),
                bytes=sum(shard.stat().st_size for shard in shards),
                written=max((shard.stat().st_mtime for shard in shards), default=0.0),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("cache: %s cannot be listed (%r); remove its folder", facts_file, error)
            continue
        found.append(summary)
    return sorted(found, key=lambda store: -store.written)


def rows_of(shard: Path) -> int:
    """Return the number of rows of a shard from its header alone; 0 if it has none."""
    with shard.open("rb") as file:
        start = file.read(8)
        try:
            facts = json.loads(file.read(int.from_bytes(start, "little")))
        except (ValueError, OverflowError, MemoryError):
            return 0
    return int(facts.get("codes", {}).get("shape", [0])[0])
