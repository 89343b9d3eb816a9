"""Shards as they are used: mapped, and each block held against its checksum before it is used.

A block is checked when its rows are first taken, once in a process for as long as the file stays
the same; or each time, where that is asked for. What is damaged is set aside and named, never
returned.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from topwork.data.loading import map_ahead
from topwork.errors import CacheError
from topwork.trunk.shard_file import Content, read_content

log = logging.getLogger("topwork")

ABSENT = -1
ROW_BITS = 32
"""A place in a store is a number: that of the shard, shifted by so many bits, plus the row's."""

FOREIGN = "belongs to another fingerprint"

Identity = tuple[str, int, int, int]


class DamagedShard(CacheError):
    """A shard whose codes are damaged; it has been set aside, and they can be computed again."""


@dataclass(eq=False)
class Checks:
    """What this process has found out about the codes of one file.

    Attributes:
        blocks: which have been found whole, bool [blocks].
        complete: whether all have.
        damaged: whether one has not.
    """

    blocks: np.ndarray
    complete: bool = False
    damaged: bool = False


_checks: dict[Identity, Checks] = {}
"""For all stores of the process, whose every fit opens them anew."""


def forget_checks() -> None:
    """Make the process check every block again when it is next touched."""
    _checks.clear()


@dataclass(frozen=True, eq=False)
class Shard:
    """A shard of a store, mapped.

    Attributes:
        path: its file.
        identity: of the file at that path when it was mapped.
        content: what is in it.
        values: its codes, each row as one value.
        checks: what is known about its blocks.
        always: whether blocks are checked each time, not once.
    """

    path: Path
    identity: Identity
    content: Content
    values: np.ndarray
    checks: Checks
    always: bool

    @property
    def codes(self) -> np.ndarray:
        """The rows, [n, ...], checked or not."""
        return self.content.codes

    @property
    def bytes(self) -> int:
        """Size of the rows."""
        return self.content.codes.nbytes

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return self.identity[2]

    def check(self, rows: np.ndarray) -> None:
        """Hold the blocks of some rows (int64 [k]) against their checksums.

        Raises:
            DamagedShard: if one does not match; the shard has been set aside.
        """
        if self.checks.complete and not self.always:
            return
        touched = np.unique(rows // self.content.block_rows)
        doubtful = touched if self.always else touched[~self.checks.blocks[touched]]
        if not doubtful.size:
            return
        for block, whole in map_ahead(doubtful.tolist(), self.content.is_whole):
            if not whole:
                raise self.damage(block)
            self.checks.blocks[block] = True
        self.checks.complete = bool(self.checks.blocks.all())

    def damage(self, block: int) -> DamagedShard:
        """Set the file aside and return the error that says so."""
        self.checks.damaged = True
        first = block * self.content.block_rows
        last = min(first + self.content.block_rows, len(self.codes)) - 1
        problem = f"is damaged in block {block} (rows {first} to {last})"
        with suppress(OSError):
            # Another process may have set it aside already, and written it anew.
            if identity_of(self.path) == self.identity:
                set_aside(self.path, problem)
        return DamagedShard(f"{self.path} {problem}; set aside: run again to compute its codes")


def open_shard(path: Path, key: str, always: bool = False) -> Shard | None:
    """Map a shard; return None for one that is gone, and for a damaged one, which is set aside."""
    with suppress(FileNotFoundError):
        identity = identity_of(path)
        if (known := _checks.get(identity)) and known.damaged:
            return None  # it could not be set aside
        if content := usable_content(path, key):
            checks = _checks.setdefault(identity, Checks(np.zeros(len(content.checksums), bool)))
            return Shard(path, identity, content, as_values(content.codes), checks, always)
        _checks[identity] = Checks(np.zeros(0, bool), damaged=True)
    return None


def usable_content(path: Path, key: str) -> Content | None:
    """Read a shard's head; one that cannot be used is named, and set aside if it is damaged.

    Raises:
        FileNotFoundError: if it is gone.
    """
    try:
        content = read_content(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        log.warning("cache: %s cannot be read (%s); its codes are computed again", path, error)
        return None
    except ValueError as error:
        set_aside(path, str(error))
        return None
    if content.key != key:
        set_aside(path, FOREIGN)
        return None
    return content


def identity_of(path: Path) -> Identity:
    """Return what changes when the file at a path does.

    Raises:
        OSError: if there is none.
    """
    facts = path.stat()
    return str(path), facts.st_mtime_ns, facts.st_size, facts.st_ino


def set_aside(path: Path, problem: str) -> None:
    """Take a damaged file out of use, and say so."""
    with suppress(OSError):  # read-only, or another process was first; it is not used anyway
        os.replace(path, path.with_suffix(".damaged"))
    log.warning("cache: %s %s; set aside, its codes are computed again", path, problem)


@dataclass(frozen=True, eq=False)
class Rows:
    """Cached rows in the order in which they were asked for, read from the disk when taken.

    Any thread may take some. No file is held open.

    Attributes:
        shape: of one row.
        dtype: of its values.
        shards: where they lie.
        places: of each row, int64 [N], as in `CodeStore.known`; `ABSENT` where the image could not
            be read.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    shards: tuple[Shard, ...]
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def at(self, index: int) -> np.ndarray:
        """Return one row, [*shape], read-only, and not copied unless its type has to change.

        Raises:
            IndexError: if there is no such row, or its image could not be read.
            DamagedShard: if it is damaged.
        """
        (number,), (row,) = self.find([index])
        self.shards[number].check(np.array([row]))
        found = self.shards[number].codes[row].astype(self.dtype, copy=False)
        found.flags.writeable = False
        return found

    def take(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return some rows, [b, *shape]: a contiguous copy that may be written to.

        Raises:
            IndexError, DamagedShard: as `at` does.
        """
        numbers, rows = self.find(indices)
        taken = np.empty((len(rows), *self.shape), self.dtype)
        values = as_values(taken)
        for number in np.flatnonzero(np.bincount(numbers)).tolist():
            to = np.flatnonzero(numbers == number)
            shard, here = self.shards[number], rows[to]
            shard.check(here)
            if shard.codes.dtype == self.dtype:
                values[to] = shard.values.take(here, axis=0)
            else:
                taken[to] = shard.codes[here]
        return taken

    def find(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the shards of some rows and the rows there; raise IndexError for an absent one."""
        places = self.places[np.asarray(indices, np.int64)]
        for index in np.asarray(indices)[places == ABSENT]:
            raise IndexError(f"row {index} is absent: its image could not be read")
        return places >> ROW_BITS, places & (1 << ROW_BITS) - 1


def as_values(rows: np.ndarray) -> np.ndarray:
    """View contiguous rows, [n, ...], as n values, which NumPy copies whole and so much faster."""
    size = rows[:1].nbytes
    return rows.reshape(len(rows), -1).view(f"V{size}").reshape(-1) if size else rows
