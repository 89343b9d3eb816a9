"""The manifest of a store: what its codes are, and which shards it had when it was last written.

``manifest.json`` is for people, for ``topwork cache`` and for noticing that a shard is gone. Codes
are never read by it: shards speak for themselves, and those that are there count, listed or not.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from topwork.data.files import write_atomically
from topwork.trunk.shard_file import SUFFIX

MANIFEST = "manifest.json"
FORMAT = 1

Listed = dict[str, dict[str, int]]
"""``rows`` and ``bytes`` of each shard, by the name of its file."""


def shard_names(folder: Path) -> set[str]:
    """Return the names of the shards that a store's folder has now."""
    try:
        return {name for name in os.listdir(folder) if name.endswith(SUFFIX)}
    except FileNotFoundError:
        return set()


def read_manifest(folder: Path) -> tuple[dict[str, Any], Listed]:
    """Return the facts of a store and the shards that are listed.

    Raises:
        FileNotFoundError: if it has no manifest.
        OSError: if it cannot be read.
        ValueError: if it is none.
    """
    text = (folder / MANIFEST).read_bytes()
    try:
        data = json.loads(text)
        facts, shards = data["facts"], data["shards"]
        listed = {
            str(name): {what: int(of[what]) for what in ("rows", "bytes")}
            for name, of in shards.items()
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder / MANIFEST} is damaged") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{folder / MANIFEST} is damaged")
    return facts, listed


def write_manifest(folder: Path, facts: dict[str, Any], listed: Listed) -> None:
    """Write the manifest of a store.

    Raises:
        OSError: if it cannot be written.
    """
    data = {"format": FORMAT, "facts": facts, "shards": dict(sorted(listed.items()))}
    write_atomically(folder / MANIFEST, json.dumps(data, indent=1).encode())


def note_use(folder: Path) -> None:
    """Remember that a store was used now: the stores that were not used for longest go first."""
    with suppress(OSError):  # a cache that can only be read needs no room
        os.utime(folder / MANIFEST)
