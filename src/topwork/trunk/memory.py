"""Codes that are not to be kept: held in memory while they are used."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class HeldRows:
    """Rows in memory, in the order in which they were asked for: as `topwork.trunk.shards.Rows`.

    Attributes:
        rows: of each image; None where it could not be read.
        shape: of one row.
        dtype: of its values.
    """

    rows: tuple[np.ndarray | None, ...]
    shape: tuple[int, ...]
    dtype: np.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, index: int) -> np.ndarray:
        """Return one row, [*shape].

        Raises:
            IndexError: if its image could not be read.
        """
        row = self.rows[index]
        if row is None:
            raise IndexError(f"row {index} is absent: its image could not be read")
        return row

    def take(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return some rows, [b, *shape]: a copy.

        Raises:
            IndexError: as `at` does.
        """
        taken = np.empty((len(indices), *self.shape), self.dtype)
        for copied, index in zip(taken, indices, strict=True):
            copied[...] = self.at(index)
        return taken


class MemoryStore:
    """What stands in for a `topwork.trunk.cache.CodeStore` where nothing is to be cached."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.known: dict[str, np.ndarray] = {}

    def __contains__(self, digest: str) -> bool:
        return digest in self.known

    def add(self, digests: Sequence[str], codes: np.ndarray) -> None:
        """Take in the codes of some images, [n, ...]."""
        self.known.update(zip(digests, codes, strict=True))

    def refresh(self) -> None:
        """Do nothing: no other process can reach what is in here."""

    def merge(self) -> None:
        """Do nothing: there are no files."""

    def rows(self, digests: Sequence[str], absent: Collection[str] = ()) -> HeldRows:
        """Return the rows of some images; of those that are named as absent there are none.

        Raises:
            KeyError: for an image that the store does not hold.
        """
        like = next(iter(self.known.values()), np.empty(0, np.float32))
        rows = tuple(None if digest in absent else self.known[digest] for digest in digests)
        return HeldRows(rows, like.shape, like.dtype)
