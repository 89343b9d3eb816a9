"""Looking after the cache: finding what is damaged, taking it out of use, removing what is old."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from topwork.data.loading import map_ahead
from topwork.errors import UsageError
from topwork.trunk.cache import CodeStore, cache_folder, cannot_write
from topwork.trunk.fingerprint import key_of
from topwork.trunk.limit import (
    discard,
    entries,
    holding_of,
    holdings,
    leftovers,
    limit_of,
    remove,
    to_go,
)
from topwork.trunk.manifest import MANIFEST, read_manifest, shard_names
from topwork.trunk.shard_file import read_content
from topwork.trunk.shards import FOREIGN, set_aside

RECORD = "record.json"
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Problem:
    """A file of the cache that is damaged or gone.

    Attributes:
        path: of the file.
        problem: what is wrong with it.
    """

    path: str
    problem: str


def verify(folders: Sequence[Path]) -> list[Problem]:
    """Read all of some stores and return what is damaged; nothing is changed."""
    return [problem for folder in folders for problem in problems_of(folder)]


def problems_of(folder: Path) -> Iterator[Problem]:
    """Yield what is damaged in a store: its manifest, and its shards, bit by bit."""
    names = sorted(shard_names(folder))
    yield from problems_of_manifest(folder)
    paths = [folder / name for name in names]
    for path, problem in map_ahead(paths, partial(problem_of_shard, key=folder.name)):
        if problem:
            yield Problem(str(path), problem)


def problems_of_manifest(folder: Path) -> Iterator[Problem]:
    """Yield what is wrong with a store's manifest, and the shards that it lists and that are gone.

    One that lists too few is all right: another process may be at work.
    """
    path = folder / MANIFEST
    try:
        facts, listed = read_manifest(folder)
    except FileNotFoundError:
        if shard_names(folder):
            yield Problem(str(path), "is gone; it is written anew when the store is next used")
        return
    except (OSError, ValueError) as error:
        yield Problem(str(path), f"cannot be used ({error})")
        return
    if key_of(facts) != folder.name:
        yield Problem(str(path), "is damaged (its facts do not match the key)")
    for name, known in sorted(listed.items()):
        file = folder / name
        try:
            if file.stat().st_size != known["bytes"]:
                yield Problem(str(file), f"is not as large as {MANIFEST} says")
        except FileNotFoundError:
            if name in listed_now(folder):  # else another process has merged it meanwhile
                yield Problem(str(file), "is gone")


def listed_now(folder: Path) -> Collection[str]:
    """Return the names of the shards that a store's manifest lists at this moment."""
    with suppress(OSError, ValueError):
        return read_manifest(folder)[1].keys()
    return ()


def problem_of_shard(path: Path, key: str) -> str | None:
    """Read all of a shard and say what is wrong with it, if anything."""
    try:
        content = read_content(path)
    except FileNotFoundError:
        return None  # another process has merged it meanwhile
    except (OSError, ValueError) as error:
        return str(error)
    if content.key != key:
        return FOREIGN
    bad = [block for block in range(len(content.checksums)) if not content.is_whole(block)]
    return f"is damaged in {len(bad)} of {len(content.checksums)} blocks" if bad else None


@dataclass(frozen=True)
class Repaired:
    """What was done to a cache.

    Attributes:
        problems: what was damaged or gone, and is out of use.
        removed: leftovers of dead processes, and damaged files.
    """

    problems: list[Problem]
    removed: list[str]


def repair(folders: Sequence[Path]) -> Repaired:
    """Take what is damaged in some stores out of use; remove what dead processes have left.

    The rows that are lost by it are computed again when they are next needed.

    Raises:
        CacheError: if a store cannot be changed.
    """
    problems = []
    for folder in folders:
        found = list(problems_of(folder))
        problems += found
        for problem in found:
            if Path(problem.path).exists() and "gone" not in problem.problem:
                set_aside(Path(problem.path), problem.problem)
        try:
            facts, _ = read_manifest(folder)
            store = CodeStore(folder, facts, always=False)
            store.refresh()
            store.record()
        except (FileNotFoundError, ValueError):
            pass  # what the codes are is known again when the store is next used
        except OSError as error:
            raise cannot_write(folder, error) from error
    removed = leftovers(cache_folder())
    for path in removed:
        discard(path)
    return Repaired(problems, [str(path) for path in removed])


@dataclass(frozen=True)
class Removal:
    """Something that `prune` removes.

    Attributes:
        path: a store, a compiled trunk, or a single file that a dead process has left.
        bytes: that it takes.
        why: it goes.
    """

    path: str
    bytes: int
    why: str


def prune(
    folders: Sequence[Path] = (),
    limit: int | None = None,
    older: float | None = None,
    dry_run: bool = False,
) -> list[Removal]:
    """Remove stores and compiled trunks, and what dead processes have left.

    Args:
        folders: stores that go in any case.
        limit: bytes that may stay; what was not used for longest goes. Where nothing else is asked
            for either, that is the limit that holds always.
        older: seconds; what was not used for longer goes.
        dry_run: remove nothing.

    Returns:
        what goes, or would go.

    Raises:
        UsageError: if the limit that holds always is no size.
    """
    root = cache_folder()
    held = holdings(root)
    if limit is None and older is None and not folders and held:
        limit = limit_of(root, sum(holding.bytes for holding in held))
    why = dict.fromkeys(folders, "named")
    if older is not None:
        old = (holding for holding in held if time.time() - holding.used > older)
        why |= {holding.folder: f"not used for {age(holding.used)}" for holding in old}
    if limit is not None:
        staying = [holding for holding in held if holding.folder not in why]
        why |= {
            holding.folder: f"beyond the limit; not used for {age(holding.used)}"
            for holding in to_go(staying, limit)
        }
    going = [Removal(str(f), holding_of(f).bytes, reason) for f, reason in why.items()]
    rest = [path for path in leftovers(root) if not why.keys() & {path, *path.parents}]
    going += [Removal(str(path), size_of(path), "left over") for path in rest]
    if not dry_run:
        for folder in why:
            remove(folder)
        for path in rest:
            discard(path)
    return going


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    total = 0
    for file in files:
        with suppress(OSError):
            total += file.stat().st_size
    return total


def age(since: float) -> str:
    """Say how long something is ago.

    >>> age(time.time() - 7200)
    '2 h'
    """
    seconds = max(0.0, time.time() - since)
    unit = max((u for u in SECONDS if SECONDS[u] <= seconds), key=SECONDS.__getitem__, default="s")
    return f"{seconds // SECONDS[unit]:.0f} {unit}"


def parse_age(text: str) -> float:
    """Return seconds.

    Raises:
        UsageError: if it is no duration.

    >>> parse_age("30d"), parse_age("90s")
    (2592000.0, 90.0)
    """
    try:
        seconds = float(text[:-1]) * SECONDS[text[-1:]]
        if not 0 <= seconds < float("inf"):
            raise ValueError
    except (ValueError, KeyError):
        raise UsageError(f"{text!r} is no duration; write it like 12h or 30d") from None
    return seconds


def find_stores(names: Sequence[str]) -> list[Path]:
    """Return the folders of the stores that are named; of all, if none is.

    Args:
        names: beginnings of keys, or run folders, which mean the stores that the run has used.

    Raises:
        UsageError: if a name means no store, or is the beginning of several keys.
    """
    folders = [folder for folder in entries(cache_folder() / "codes") if folder.is_dir()]
    if not names:
        return folders
    found = [folder for name in names for folder in stores_named(name, folders)]
    return list(dict.fromkeys(found))


def stores_named(name: str, folders: Sequence[Path]) -> list[Path]:
    """Return the stores that one name means.

    Raises:
        UsageError: if it means none, or is the beginning of several keys.
    """
    if (Path(name) / RECORD).is_file():
        keys = keys_of_run(Path(name))
        used = [folder for folder in folders if folder.name in keys]
        if not used:
            raise UsageError(f"{name}: the cache holds none of the codes of this run; run it again")
        return used
    found = [folder for folder in folders if name and folder.name.startswith(name.lower())]
    if len(found) > 1:
        some = ", ".join(folder.name[: len(name) + 4] for folder in found[:5])
        raise UsageError(f"{name!r} begins {len(found)} keys ({some}); give more of it")
    if not found:
        length = max(len(name), 8)
        near = get_close_matches(name, [f.name[:length] for f in folders], n=3, cutoff=0.4)
        hint = f"; near ones are {', '.join(near)}" if near else ""
        raise UsageError(f"no key in the cache begins with {name!r}{hint}; see topwork cache ls")
    return found


def keys_of_run(run: Path) -> list[str]:
    """Return the keys of the codes that a run has used.

    Raises:
        UsageError: if its record does not say.
    """
    try:
        record = json.loads((run / RECORD).read_text(encoding="utf-8"))
        return [str(key) for key in record["cached_codes"]["keys"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{run / RECORD} names no cached codes; choose a run of fit") from error
