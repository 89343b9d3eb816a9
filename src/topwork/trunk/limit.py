"""How large the cache may grow, and what goes when it has: what was not used for longest.

What goes, goes as a whole: a store of codes, a compiled trunk, or what a trial gave. Files that
another process has mapped stay readable to it, and what it writes to a folder that is gone makes
the folder anew.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from topwork.errors import UsageError
from topwork.trunk.manifest import MANIFEST

log = logging.getLogger("topwork")

LIMIT = "TOPWORK_CACHE_LIMIT"
KINDS = ("codes", "trunks", "trials")
CLAIMS = "claims"
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
LEFTOVERS = (".tmp", ".damaged", ".claim", ".now")
LEFT_SECONDS = 3600.0
"""What dead processes left is removed when it is older; until then someone may be at work on it."""


@dataclass(frozen=True)
class Holding:
    """Something in the cache that stays or goes as a whole.

    Attributes:
        folder: where it lies: a store of codes, a compiled trunk, or what a trial gave.
        bytes: on the disk.
        used: when last, in seconds since 1970.
    """

    folder: Path
    bytes: int
    used: float


def parse_size(text: str) -> int:
    """Return a number of bytes.

    Raises:
        UsageError: if it is none.

    >>> parse_size("20GB"), parse_size("1.5 mb"), parse_size("0")
    (20000000000, 1500000, 0)
    """
    number = text.strip().upper()
    unit = next((unit for unit in reversed(UNITS) if number.endswith(unit)), "")
    try:
        size = float(number.removesuffix(unit)) * UNITS.get(unit, 1)
        if not 0 <= size < float("inf"):
            raise ValueError
    except ValueError:
        raise UsageError(f"{text!r} is no size; write it like 500MB or 20GB") from None
    return int(size)


def holdings(root: Path) -> list[Holding]:
    """Return all that the cache at a folder holds, the least recently used first."""
    found = [
        holding_of(folder)
        for kind in KINDS
        for folder in entries(root / kind)
        if folder.is_dir() and folder.suffix not in LEFTOVERS
    ]
    return sorted(found, key=lambda holding: (holding.used, holding.folder))


def holding_of(folder: Path) -> Holding:
    """Return what lies in a folder; it was last used when its newest file was last touched."""
    size, used = 0, 0.0
    for file in entries(folder):
        with suppress(OSError):  # it has gone meanwhile
            facts = file.stat()
            size += facts.st_size
            used = max(used, facts.st_mtime)
    if not size:  # just begun: another process is about to write to it
        used = time.time()
    return Holding(folder, size, used)


def entries(folder: Path) -> list[Path]:
    """Return what is in a folder; nothing where there is no such folder."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def limit_of(root: Path, held: int) -> int:
    """Return how many bytes the cache at a folder may hold.

    That is what ``TOPWORK_CACHE_LIMIT`` says; without it, half of what would be free if the cache
    were empty: however much the disk is needed for otherwise, the cache never fills it.

    Args:
        root: the cache's folder.
        held: bytes that it holds now.

    Raises:
        UsageError: if the variable holds no size.
    """
    chosen = require_limit()
    if chosen is not None:
        return chosen
    return (shutil.disk_usage(root).free + held) // 2


def require_limit() -> int | None:
    """Return the bytes that ``TOPWORK_CACHE_LIMIT`` allows; None where it is not set.

    Raises:
        UsageError: if it is no size.
    """
    chosen = os.environ.get(LIMIT)
    try:
        return parse_size(chosen) if chosen else None
    except UsageError as error:
        raise UsageError(f"{LIMIT}: {error}") from None


def to_go(held: Iterable[Holding], limit: int, keep: Collection[Path] = ()) -> list[Holding]:
    """Return what has to go so that no more than a limit stays, least recently used first.

    Args:
        held: all there is, the least recently used first.
        limit: bytes that may stay.
        keep: folders that stay in any case.
    """
    held = list(held)
    excess = sum(holding.bytes for holding in held) - limit
    going = []
    for holding in held:
        if excess <= 0:
            break
        if holding.folder not in keep:
            going.append(holding)
            excess -= holding.bytes
    return going


def make_room(root: Path, coming: int, keep: Collection[Path]) -> None:
    """Remove what was not used for longest, until as many bytes as are coming fit the limit.

    Where even that is not enough the cache grows beyond it: a run is finished first.

    Args:
        root: the cache's folder.
        coming: bytes that are about to be written.
        keep: folders that stay, because this process uses them.

    Raises:
        UsageError: if the limit is no size.
    """
    held = holdings(root)
    limit = limit_of(root, sum(holding.bytes for holding in held)) - coming
    for holding in to_go(held, limit, keep):
        remove(holding.folder)
        if not holding.folder.exists():
            log.info("cache: removed %s to make room; it was not used for longest", holding.folder)


def remove(folder: Path) -> None:
    """Remove a store, a compiled trunk or a trial.

    Its manifest goes first: what is left if this is interrupted then misses nothing.
    """
    with suppress(OSError):
        (folder / MANIFEST).unlink()
    for file in entries(folder):
        if file.suffix != ".tmp" or is_old(file):
            discard(file)
    with suppress(OSError):  # another process is writing to it
        folder.rmdir()


def discard(path: Path) -> None:
    """Remove a file or a folder if it is there and can be removed."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()


def leftovers(root: Path) -> list[Path]:
    """Return what dead processes have left in the cache, and damaged shards that were set aside."""
    files = (path for kind in (*KINDS, CLAIMS) for path in (root / kind).rglob("*"))
    known = (path for path in files if path.suffix in LEFTOVERS)
    return sorted(path for path in known if path.suffix == ".damaged" or is_old(path))


def is_old(path: Path) -> bool:
    """Say whether nobody can be at work on a file any more."""
    try:
        return time.time() - path.stat().st_mtime > LEFT_SECONDS
    except OSError:
        return False
