"""What was tried before, kept in the cache: a trial is the same whenever it is run."""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from topwork.data.files import write_atomically
from topwork.trunk.cache import cache_folder

Array = np.ndarray

log = logging.getLogger("topwork")

FILE = "scores.safetensors"


def recall(key: str) -> tuple[Array, float] | None:
    """Return scores and seconds of a trial that was run before; None if there is no whole record.

    Raises:
        UsageError: if ``TOPWORK_CACHE`` is no place for a cache.
    """
    file = folder_of(key) / FILE
    try:
        found = load(file.read_bytes())
        scores, seconds, digest = (found[name] for name in ("scores", "seconds", "digest"))
    except (OSError, SafetensorError, KeyError):
        return None
    if digest.tobytes() != digest_of(scores, seconds):
        log.warning("%s is damaged; what it told is tried again", file)
        return None
    with suppress(OSError):
        os.utime(file)  # the cache drops what was not used for longest
    return scores, float(seconds[0])


def remember(key: str, scores: Array, seconds: float) -> None:
    """Keep what a trial gave; where that is not possible it will be run again."""
    folder, took = folder_of(key), np.array([seconds])
    digest = np.frombuffer(digest_of(scores, took), np.uint8)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"scores": scores, "seconds": took, "digest": digest}
        write_atomically(folder / FILE, save(tensors))
    except OSError as error:
        log.info("%s cannot be written (%s): what was tried is not kept", folder, error.strerror)


def folder_of(key: str) -> Path:
    """Return where a trial is kept."""
    return cache_folder() / "trials" / key


def digest_of(scores: Array, seconds: Array) -> bytes:
    """Return the SHA-256 of what a trial gave."""
    parts = (np.ascontiguousarray(part).tobytes() for part in (scores, seconds))
    return hashlib.sha256(b"".join(parts)).digest()
