"""Whatever happens to a shard's bits, no wrong value is returned, and only its rows are lost."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from topwork.trunk.cache import CodeStore, open_store
from topwork.trunk.shards import DamagedShard, forget_checks

pytestmark = pytest.mark.slow

FACTS = {"cut": "layer3", "pool": "avg", "dtype": "float32"}
SMALL = [f"{i:064x}" for i in range(12)]
LARGE = [f"{i:064x}" for i in range(100, 3600)]
RANDOM = np.random.default_rng(0)
SMALL_CODES = RANDOM.normal(size=(len(SMALL), 40)).astype(np.float32)
LARGE_CODES = RANDOM.normal(size=(len(LARGE), 768)).astype(np.float32)


@pytest.fixture(autouse=True)
def without_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nothing here survives the test


@pytest.fixture
def store() -> CodeStore:
    """Return a store of a small shard (about 3 kB) and a large one (about 11 MB)."""
    made = open_store(FACTS)
    made.add(SMALL, SMALL_CODES)
    made.add(LARGE, LARGE_CODES)
    return made


def shard(store: CodeStore, rows: int) -> Path:
    return next(found.path for found in store.shards if len(found.codes) == rows)


def survives(victim: Path, lost: list[str], kept: list[str], codes: np.ndarray) -> bool:
    """Read all rows through the store; say whether the damage to one shard was noticed.

    The rows of the other must be as they were, and those of the damaged one unknown.
    """
    forget_checks()
    found = open_store(FACTS)
    if all(digest in found for digest in lost):
        try:
            found.rows(lost).take(range(len(lost)))
            return False
        except DamagedShard:
            found.refresh()
    assert not any(digest in found for digest in lost)
    assert not victim.exists()
    np.testing.assert_array_equal(found.rows(kept).take(range(len(kept))), codes)
    return True


def flips(path: Path, bits: np.ndarray) -> Iterator[Path]:
    """Yield a file with one bit flipped, in place, then with the next instead."""
    whole = path.read_bytes()
    aside = path.with_suffix(".damaged")
    for bit in bits.tolist():
        byte, mask = bit // 8, 1 << bit % 8
        with path.open("r+b") as file:
            file.seek(byte)
            file.write(bytes([whole[byte] ^ mask]))
        yield path
        aside.rename(path)
        with path.open("r+b") as file:
            file.seek(byte)
            file.write(whole[byte : byte + 1])
    assert path.read_bytes() == whole


def test_every_single_bit_of_a_small_shard(store: CodeStore) -> None:
    path = shard(store, len(SMALL))
    kept = LARGE[:5]
    bits = np.arange(8 * path.stat().st_size)
    assert 16_000 < len(bits) < 32_000
    found = [survives(victim, SMALL, kept, LARGE_CODES[:5]) for victim in flips(path, bits)]
    assert all(found)
    assert len(found) == len(bits)


def test_ten_thousand_random_bits_of_a_large_shard(store: CodeStore) -> None:
    path = shard(store, len(LARGE))
    assert path.stat().st_size > 10e6
    bits = np.random.default_rng(1).choice(8 * path.stat().st_size, 10_000, replace=False)
    found = [survives(victim, LARGE, SMALL, SMALL_CODES) for victim in flips(path, bits)]
    assert all(found)
    assert len(found) == 10_000


def test_every_truncation_and_things_appended(store: CodeStore) -> None:
    path = shard(store, len(SMALL))
    whole = path.read_bytes()
    for damaged in [*(whole[:n] for n in range(len(whole))), whole + b"\0", whole + whole]:
        path.write_bytes(damaged)
        assert survives(path, SMALL, LARGE[:5], LARGE_CODES[:5])
    path.write_bytes(whole)
    np.testing.assert_array_equal(open_store(FACTS).rows(SMALL).take(range(12)), SMALL_CODES)


def test_every_truncation_to_whole_pages_of_a_large_shard(store: CodeStore) -> None:
    path = shard(store, len(LARGE))
    whole = path.read_bytes()
    for length in range(0, len(whole), 65_536):
        path.write_bytes(whole[:length])
        assert survives(path, LARGE, SMALL, SMALL_CODES)


def test_blocks_exchanged_within_a_shard(store: CodeStore) -> None:
    path = shard(store, len(LARGE))
    row = 768 * 4
    per_block = 2**20 // row
    whole = path.read_bytes()
    start = len(whole) - len(LARGE) * row
    first = whole[start : start + per_block * row]
    second = whole[start + per_block * row : start + 2 * per_block * row]
    path.write_bytes(whole[:start] + second + first + whole[start + 2 * per_block * row :])
    assert survives(path, LARGE, SMALL, SMALL_CODES)


def test_only_the_rows_of_the_damaged_shard_are_lost_and_written_again(store: CodeStore) -> None:
    path = shard(store, len(SMALL))
    whole = path.read_bytes()
    (victim,) = flips_once(path)
    assert survives(victim, SMALL, LARGE, LARGE_CODES)
    again = open_store(FACTS)
    assert [digest for digest in (*SMALL, *LARGE) if digest not in again] == SMALL
    again.add(SMALL, SMALL_CODES)
    assert path.read_bytes() == whole


def flips_once(path: Path) -> list[Path]:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return [path]
