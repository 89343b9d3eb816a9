"""Rows from the cache, in random batches: when they are first touched and checked, and then warm.

200,000 rows of 768 values in float16 are written through a store, in parts of 512 as extraction
does, and merged. A batch is what a step of training takes: a contiguous copy of rows drawn evenly.
The ceiling is NumPy's own indexing of one array in memory. Medians of 5 interleaved rounds, one
thread; every checksum is looked at when a block of rows is first touched.

    python benchmarks/cache_rows.py
"""

from __future__ import annotations

import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from places import options
from topwork.trunk.cache import open_store
from topwork.trunk.shards import Rows, forget_checks

VALUES = 768
PART = 512
BATCHES = (256, 4096)
ROUNDS = 5
WANTED = 2e6  # rows per second, from a warm cache
FACTS = {"cut": "benchmark", "pool": "avg", "dtype": "float16"}

Take = Callable[[np.ndarray], np.ndarray]


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    args = parser.parse_args()
    codes = np.random.default_rng(0).standard_normal((args.rows, VALUES), np.float32)
    codes = codes.astype(np.float16)
    digests = [hashlib.sha256(str(row).encode()).hexdigest() for row in range(args.rows)]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TOPWORK_CACHE"] = folder
        shards = build(digests, codes)
        print(f"{args.rows} rows of {VALUES} float16, {codes.nbytes / 1e6:.0f} MB, {shards} shards")
        for size in BATCHES:
            first_touch(digests, size, args.rows)
        store = open_store(FACTS)
        rows = store.rows(digests)
        taken = rows.take(range(args.rows))
        if not np.array_equal(taken, codes):
            sys.exit("the rows are not those that were written")
        del taken
        passed = [warm(rows, codes, size, args.seconds) for size in BATCHES]
    print("PASS" if all(passed) else "FAIL")
    return not all(passed)


def build(digests: list[str], codes: np.ndarray) -> int:
    """Write all rows to a store and merge its shards; return how many it has then."""
    start = time.perf_counter()
    store = open_store(FACTS)
    for first in range(0, len(codes), PART):
        part = slice(first, first + PART)
        store.add(digests[part], codes[part].astype(np.float32))
    written = time.perf_counter()
    store.merge()
    merged = time.perf_counter()
    print(f"written in {written - start:.1f} s in parts of {PART}, merged in", end=" ")
    print(f"{merged - written:.1f} s")
    return len(store.shards)


def first_touch(digests: list[str], size: int, count: int) -> None:
    """Print how fast a process opens the store and takes all rows once, in a random order."""
    order = np.random.default_rng(1).permutation(count)
    opened, rates = [], []
    for _ in range(ROUNDS):
        forget_checks()
        start = time.perf_counter()
        rows = open_store(FACTS).rows(digests)
        ready = time.perf_counter()
        for first in range(0, count, size):
            rows.take(order[first : first + size])
        opened.append(ready - start)
        rates.append(count / (time.perf_counter() - ready))
    print(
        f"first touch, batches of {size}: {statistics.median(rates) / 1e6:.2f} M rows/s"
        f" with all checksums; opened in {statistics.median(opened):.2f} s"
    )


def warm(rows: Rows, codes: np.ndarray, size: int, seconds: float) -> bool:
    """Print how fast random batches are taken again, beside the ceiling; say if fast enough."""
    ways: dict[str, Take] = {"cache": rows.take, "ceiling": codes.__getitem__}
    rounds = [
        {name: rate(take, len(rows), size, seconds) for name, take in ways.items()}
        for _ in range(ROUNDS)
    ]
    cache, ceiling = (statistics.median(found[name] for found in rounds) for name in ways)
    share = statistics.median(found["cache"] / found["ceiling"] for found in rounds)
    print(
        f"warm, batches of {size}: {cache / 1e6:.2f} M rows/s (wanted {WANTED / 1e6:.0f});"
        f" one array in memory {ceiling / 1e6:.2f}; {share:.0%} of it",
        flush=True,
    )
    return cache >= WANTED


def rate(take: Take, count: int, size: int, seconds: float) -> float:
    """Return the rows that are taken in a second, in random batches."""
    generator = np.random.default_rng(2)
    batches = [generator.integers(0, count, size) for _ in range(64)]
    take(batches[0])
    done, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        take(batches[done % len(batches)])
        done += 1
    return done * size / elapsed


if __name__ == "__main__":
    sys.exit(main())
