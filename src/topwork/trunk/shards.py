"""Shards: files of rows that are named after their own content, and mapped instead of loaded.

A shard is a safetensors file with ``codes`` [n, ...], float32 (or the uint8 of pixels), and
``digests`` [n, 32] uint8 (the SHA-256 of each row's image). Its name is the SHA-256 of its own
bytes: so a shard that was cut off, flipped, renamed or swapped shows when it is opened, and two
processes that write the same shard write the same file. Shards are never changed in place. So they
can be mapped, and rows stay on the disk until they are taken.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
import torch

from topwork.data.files import write_atomically

log = logging.getLogger("topwork")

DTYPES = {"F32": np.float32, "U8": np.uint8}
ABSENT = -1


class Shard(NamedTuple):
    """What a shard holds, mapped.

    Attributes:
        codes: float32 or uint8 [n, ...].
        digests: uint8 [n, 32], the SHA-256 of each row's image.
    """

    codes: np.ndarray
    digests: np.ndarray


@dataclass(frozen=True, eq=False)
class Rows:
    """Cached rows in the order in which they were asked for, read from the disk when taken.

    Any thread may take some. No file is held open.

    Attributes:
        shape: of one row.
        dtype: of its values.
        shards: the mapped shards, [n, *shape] each.
        places: of each row, int64 [N, 2]: the shard, and the row in it; `ABSENT` twice where the
            image could not be read.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    shards: tuple[np.ndarray, ...]
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def at(self, index: int) -> np.ndarray:
        """Return one row, [*shape], read-only and not copied.

        Raises:
            IndexError: if there is no such row, or its image could not be read.
        """
        ((shard, row),) = self.find([index])
        return self.shards[shard][row]

    def take(self, indices: Sequence[int]) -> np.ndarray:
        """Return some rows, [b, *shape]: a contiguous copy that may be written to.

        Raises:
            IndexError: as `at` does.
        """
        taken = np.empty((len(indices), *self.shape), self.dtype)
        for copied, (shard, row) in zip(taken, self.find(indices), strict=True):
            copied[...] = self.shards[shard][row]
        return taken

    def find(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        """Return the places of some rows; raise IndexError for one that is absent."""
        places = self.places[np.asarray(indices, np.int64)]
        for index in np.asarray(indices)[places[:, 0] == ABSENT]:
            raise IndexError(f"row {index} is absent: its image could not be read")
        return places.tolist()


def write_shard(folder: Path, key: str, digests: Sequence[str], codes: np.ndarray) -> Shard:
    """Write a shard and return it.

    Args:
        folder: of the store.
        key: of the store's fingerprint.
        digests: the SHA-256 of each image's bytes, in hexadecimal.
        codes: float32 or uint8 [n, ...], a row for each.

    Raises:
        OSError: if it cannot be written.
    """
    raw = np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(len(digests), 32)
    tensors = {"codes": np.ascontiguousarray(codes), "digests": raw.copy()}
    data = safetensors.numpy.save(tensors, {"key": key})
    path = folder / f"{hashlib.sha256(data).hexdigest()}.safetensors"
    write_atomically(path, data)
    return shard_in(mapped(path))


def read_shard(path: Path, key: str) -> Shard | None:
    """Map a shard; a damaged one is set aside, named, and None returned."""
    try:
        data = mapped(path)
    except OSError as error:
        log.warning("cache: %s cannot be read (%s); its codes are computed again", path, error)
        return None
    problem = problem_with(path, data, key)
    if problem:
        with suppress(OSError):  # read-only, or another process was first; it is not used anyway
            os.replace(path, path.with_suffix(".damaged"))
        log.warning("cache: %s %s; set aside, its codes are computed again", path, problem)
        return None
    return shard_in(data)


def mapped(path: Path) -> np.ndarray:
    """Return the bytes of a file, uint8, read-only, mapped into memory.

    Unlike NumPy's and Python's own mappings this one keeps no file open: a process may have about a
    thousand open files, and a store may have more shards.

    Raises:
        OSError: if the file cannot be read.
    """
    size = path.stat().st_size
    try:
        storage = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    except RuntimeError as error:
        raise OSError(str(error).partition("\n")[0]) from error
    data = storage.numpy()
    data.flags.writeable = False
    return data


def problem_with(path: Path, data: np.ndarray, key: str) -> str | None:
    """Say what is wrong with a shard's bytes, if anything."""
    if hashlib.sha256(data.data).hexdigest() != path.stem:
        return "is damaged (its bytes do not match its name)"
    try:
        shard_in(data)
        written_for = header(data)[0]["__metadata__"]["key"]
    except (ValueError, LookupError, TypeError):
        return "is no shard"
    return None if written_for == key else "belongs to another fingerprint"


def shard_in(data: np.ndarray) -> Shard:
    """Return the tensors of a shard as views of its bytes.

    Raises:
        ValueError, LookupError, TypeError: if it is none.
    """
    facts, start = header(data)
    tensors = []
    for name in Shard._fields:
        begin, end = facts[name]["data_offsets"]
        values = data[start + begin : start + end].view(DTYPES[facts[name]["dtype"]])
        tensors.append(values.reshape(facts[name]["shape"]))
    shard = Shard(*tensors)
    if len(shard.codes) != len(shard.digests):
        raise ValueError("as many digests as rows are needed")
    return shard


def header(data: np.ndarray) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file and where the values begin.

    It is 8 bytes of length, then JSON.
    """
    end = 8 + int.from_bytes(data[:8].tobytes(), "little")
    return json.loads(data[8:end].tobytes()), end


def rows_of(shard: Path) -> int:
    """Return the number of rows of a shard from its header alone; 0 if it has none."""
    with shard.open("rb") as file:
        start = file.read(8)
        try:
            facts = json.loads(file.read(int.from_bytes(start, "little")))
        except (ValueError, OverflowError, MemoryError):
            return 0
    return int(facts.get("codes", {}).get("shape", [0])[0])
