"""The file of a shard: rows of codes, and what shows that none of their bits has changed.

It is a safetensors file, its tensors in this order:

    digests    uint8 [n, 32]        the SHA-256 of each row's image
    checksums  uint8 [blocks, 32]   the SHA-256 of each block of rows
    codes      float32, float16 or uint8 [n, ...]

A block is about a mebibyte of rows. The name of the file is the SHA-256 of its head: of all that
comes before the codes. So the name stands for every bit of the file, though only the head has to be
read to open it; a block is held against its checksum when its rows are first taken. Two processes
that write the same rows write the same file. Shards are never changed in place, so they can be
mapped, and rows stay on the disk until they are taken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from topwork.data.files import write_atomically

SUFFIX = ".safetensors"
BLOCK_BYTES = 2**20
DTYPES: dict[str, np.dtype] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "U8": np.dtype("u1")}
MISFITS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading a header raises that is none."""


class Content(NamedTuple):
    """What a shard's file holds, mapped and read-only.

    Attributes:
        digests: uint8 [n, 32], the SHA-256 of each row's image.
        checksums: uint8 [blocks, 32], the SHA-256 of each block of rows.
        codes: float32, float16 or uint8 [n, ...]; not looked at yet.
        block_rows: rows of a block; the last one may have fewer.
        key: of the fingerprint that it was written for.
    """

    digests: np.ndarray
    checksums: np.ndarray
    codes: np.ndarray
    block_rows: int
    key: str

    def is_whole(self, block: int) -> bool:
        """Say whether the bytes of a block are those that were written."""
        rows = self.codes[block * self.block_rows : (block + 1) * self.block_rows]
        return hashlib.sha256(rows.data).digest() == self.checksums[block].tobytes()


def write_shard(folder: Path, key: str, digests: Sequence[str], codes: np.ndarray) -> Path:
    """Write the file of a shard and return its path.

    Args:
        folder: of the store.
        key: of the store's fingerprint.
        digests: the SHA-256 of each image's bytes, in hexadecimal.
        codes: float32, float16 or uint8 [n, ...], a row for each; n at least 1.

    Raises:
        OSError: if it cannot be written.
    """
    codes = np.ascontiguousarray(codes)
    block_rows = max(1, BLOCK_BYTES // max(1, codes[0].nbytes))
    starts = range(0, len(codes), block_rows)
    checksums = [hashlib.sha256(codes[i : i + block_rows].data).digest() for i in starts]
    facts = {"key": key, "block_rows": str(block_rows)}
    head = head_of(facts, bytes.fromhex("".join(digests)), b"".join(checksums), codes)
    path = folder / f"{hashlib.sha256(head).hexdigest()}{SUFFIX}"
    write_atomically(path, head, codes.data)
    return path


def head_of(facts: dict[str, str], digests: bytes, checksums: bytes, codes: np.ndarray) -> bytes:
    """Return what comes before the codes.

    The library that writes safetensors would do this too, but not twice in the same order, and it
    copies all it writes.
    """
    tensors: dict[str, Any] = {"__metadata__": facts}
    begin = 0
    for name, dtype, shape, size in (
        ("digests", "U8", [len(digests) // 32, 32], len(digests)),
        ("checksums", "U8", [len(checksums) // 32, 32], len(checksums)),
        ("codes", name_of_dtype(codes.dtype), list(codes.shape), codes.nbytes),
    ):
        offsets = [begin, begin + size]
        tensors[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        begin += size
    header = json.dumps(tensors, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # as the format has it; so every tensor is aligned
    return len(header).to_bytes(8, "little") + header + digests + checksums


def name_of_dtype(dtype: np.dtype) -> str:
    """Return what safetensors calls a type of values.

    >>> name_of_dtype(np.dtype(np.float16))
    'F16'
    """
    return next(name for name, known in DTYPES.items() if known == dtype)


def read_content(path: Path) -> Content:
    """Map a shard's file; its head is checked, its codes are not.

    Raises:
        FileNotFoundError: if it is gone.
        OSError: if it cannot be read.
        ValueError: if it is damaged; the text says how.
    """
    data = mapped(path)
    try:
        content, head = parse(data)
    except MISFITS as error:
        raise ValueError("is no shard, or its header is damaged") from error
    if hashlib.sha256(data[:head].data).hexdigest() != path.stem:
        raise ValueError("is damaged (its head does not match its name)")
    return content


def parse(data: np.ndarray) -> tuple[Content, int]:
    """Return the tensors in the bytes of a file, as views, and where its codes begin.

    Raises:
        MISFITS: if it is no shard.
    """
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    tensors = {}
    for name in ("digests", "checksums", "codes"):
        shape, dtype = header[name]["shape"], DTYPES[header[name]["dtype"]]
        begin, end = (start + offset for offset in header[name]["data_offsets"])
        if end - begin != prod(shape) * dtype.itemsize or not start <= begin <= end <= len(data):
            raise ValueError(f"{name} does not fit its shape, or the file is cut off")
        tensors[name] = data[begin:end].view(dtype).reshape(shape)
    if end != len(data):
        raise ValueError("there is something behind the codes")
    facts = header["__metadata__"]
    content = Content(**tensors, block_rows=int(facts["block_rows"]), key=facts["key"])
    blocks = -(-len(content.codes) // content.block_rows)
    if (len(content.digests), len(content.checksums)) != (len(content.codes), blocks):
        raise ValueError("a digest of each row and a checksum of each block are needed")
    return content, begin


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
        if not path.exists():
            raise FileNotFoundError(f"{path} is gone") from error
        raise OSError(str(error).partition("\n")[0]) from error
    data = storage.numpy()
    data.flags.writeable = False
    return data


def rows_of(path: Path) -> int:
    """Return the number of rows of a shard from its header alone; 0 if it has none."""
    with path.open("rb") as file:
        start = file.read(8)
        try:
            facts = json.loads(file.read(int.from_bytes(start, "little")))
            return int(facts["codes"]["shape"][0])
        except (ValueError, LookupError, TypeError, OverflowError, MemoryError):
            return 0
