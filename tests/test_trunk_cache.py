"""The cache never lies: what is damaged, stale or foreign is found, named and computed again."""

import builtins
import errno
import hashlib
import io
import itertools
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save

from topwork.data.augment import View
from topwork.errors import CacheError
from topwork.trunk import cache, shard_file
from topwork.trunk.cache import CodeStore, cache_folder, list_stores, open_store
from topwork.trunk.precision import fits_half
from topwork.trunk.shard_file import write_shard
from topwork.trunk.shards import ROW_BITS, DamagedShard, forget_checks

FACTS = {"cut": "layer3", "pool": "avg", "weights": "w"}
HALF = {**FACTS, "dtype": "float16"}
DIGESTS = [f"{i:064x}" for i in range(6)]
CODES = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)


@pytest.fixture(autouse=True)
def forgetful() -> None:
    forget_checks()  # of files that were written in the same instant, which no clock tells apart


def filled() -> CodeStore:
    store = open_store(FACTS)
    store.add(DIGESTS[:4], CODES[:4])
    store.add(DIGESTS[4:], CODES[4:])
    return store


def shards(store: CodeStore) -> list[Path]:
    return sorted(store.folder.glob("*.safetensors"))


def manifest(store: CodeStore) -> dict:
    return json.loads((store.folder / "manifest.json").read_text(encoding="utf-8"))


def flip(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def numbered(count: int, start: int = 0) -> list[str]:
    return [hashlib.sha256(str(i).encode()).hexdigest() for i in range(start, start + count)]


def test_round_trip_in_any_order() -> None:
    filled()
    again = open_store(FACTS)
    order = [5, 0, 3, 3]
    np.testing.assert_array_equal(
        again.rows([DIGESTS[i] for i in order]).take(range(4)), CODES[order]
    )
    assert DIGESTS[2] in again
    assert "f" * 64 not in again
    with pytest.raises(KeyError):
        again.rows(["f" * 64])


def test_other_facts_are_another_store() -> None:
    filled()
    assert DIGESTS[0] not in open_store({**FACTS, "weights": "v"})


def test_any_reader_of_safetensors_opens_a_shard() -> None:
    from safetensors.torch import load_file as load_in_torch

    store = filled()
    for path in shards(store):
        tensors = load_in_torch(path)
        shapes = {name: tuple(tensor.shape)[1] for name, tensor in tensors.items()}
        assert shapes == {"codes": 5, "digests": 32, "checksums": 32}
        found = load_file(path)
        held = [DIGESTS.index(digest.tobytes().hex()) for digest in found["digests"]]
        np.testing.assert_array_equal(found["codes"], CODES[held])
        expected = hashlib.sha256(CODES[held].tobytes()).digest()
        assert found["checksums"].tobytes() == expected  # one block
        with safe_open(path, "numpy") as file:
            assert file.metadata()["key"] == store.key


@pytest.mark.parametrize("count", [1, 4, 5, 8, 9])
def test_blocks_are_of_whole_rows(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(shard_file, "BLOCK_BYTES", 4 * 20 + 19)  # four rows, and a bit
    store = open_store(FACTS)
    codes = np.arange(count * 5, dtype=np.float32).reshape(count, 5)
    store.add(numbered(count), codes)
    (path,) = shards(store)
    found = load_file(path)["checksums"]
    expected = [hashlib.sha256(codes[i : i + 4].tobytes()).digest() for i in range(0, count, 4)]
    assert [checksum.tobytes() for checksum in found] == expected
    np.testing.assert_array_equal(store.rows(numbered(count)).take(range(count)), codes)
    monkeypatch.setattr(shard_file, "BLOCK_BYTES", 1)  # what counts is in the file
    again = open_store(FACTS)
    np.testing.assert_array_equal(again.rows(numbered(count)).take(range(count)), codes)


def test_opening_reads_heads_and_taking_reads_the_blocks_it_needs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shard_file, "BLOCK_BYTES", 20)  # a row
    filled()
    store = open_store(FACTS)
    (victim,) = (path for path in shards(store) if manifest(store)["shards"][path.name]["rows"] > 2)
    flip(victim, victim.stat().st_size - 1)
    again = open_store(FACTS)
    rows = again.rows(DIGESTS)
    np.testing.assert_array_equal(rows.take([0, 1, 2, 4, 5]), CODES[[0, 1, 2, 4, 5]])
    assert not caplog.records
    message = rf"{victim.name} is damaged in block 3 \(rows 3 to 3\); set aside: run again"
    for taken in (lambda: rows.at(3), lambda: rows.take([0, 3])):
        with pytest.raises(DamagedShard, match=message):
            taken()
    assert not victim.exists()
    assert victim.with_suffix(".damaged").exists()
    assert "computed again" in caplog.text
    assert len(caplog.records) == 1
    again.refresh()
    assert set(again.known) == set(DIGESTS[4:])
    assert set(open_store(FACTS).known) == set(DIGESTS[4:])
    assert len(caplog.records) == 1  # what was set aside is not named again
    again.add(DIGESTS[:4], CODES[:4])
    np.testing.assert_array_equal(again.rows(DIGESTS).take(range(6)), CODES)
    assert victim.exists()


def test_a_block_is_checked_once_or_always(monkeypatch: pytest.MonkeyPatch) -> None:
    filled()
    checked: list[int] = []
    whole = shard_file.Content.is_whole

    def counting(content: shard_file.Content, block: int) -> bool:
        checked.append(block)
        return whole(content, block)

    monkeypatch.setattr(shard_file.Content, "is_whole", counting)
    for verify, expected in (("once", 2), ("once", 0), ("always", 6), ("once", 0)):
        rows = open_store(FACTS, verify).rows(DIGESTS)
        checked.clear()
        rows.take(range(6))
        rows.at(0)
        rows.at(1)
        rows.take([4, 5])
        assert len(checked) == (5 if verify == "always" else expected)
    forget_checks()
    open_store(FACTS).rows(DIGESTS).take(range(6))
    assert len(checked) == 2


def test_always_finds_what_changed_after_it_was_read() -> None:
    store = open_store(FACTS)
    store.add(DIGESTS, CODES)
    (victim,) = shards(store)
    rows = open_store(FACTS, "always").rows(DIGESTS)
    rows.take(range(6))
    times = victim.stat()
    with victim.open("r+b") as file:  # in place, as a disk does it
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 64]))
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DamagedShard):
        rows.take(range(6))


def test_every_flipped_bit_and_every_truncation_is_found(caplog: pytest.LogCaptureFixture) -> None:
    store = filled()
    victim = shards(store)[0]
    whole = victim.read_bytes()
    damages = [whole + b"1", *(whole[:length] for length in range(0, len(whole), 31))]
    for position in range(0, len(whole), 7):  # all of them: test_trunk_damage.py
        flipped = bytearray(whole)
        flipped[position] ^= 1 << (position % 8)
        damages.append(bytes(flipped))
    for damage in damages:
        forget_checks()
        victim.write_bytes(damage)
        found = open_store(FACTS)
        held = [i for i, digest in enumerate(DIGESTS) if digest in found]
        if len(held) == 6:  # the head is whole
            with pytest.raises(DamagedShard):
                found.rows(DIGESTS).take(range(6))
            found.refresh()
            held = [i for i, digest in enumerate(DIGESTS) if digest in found]
        assert len(held) in (2, 4)  # the other shard's
        np.testing.assert_array_equal(
            found.rows([DIGESTS[i] for i in held]).take(range(len(held))), CODES[held]
        )
        assert not victim.exists()
        assert victim.with_suffix(".damaged").read_bytes() == damage
    assert str(victim) in caplog.text
    assert "computed again" in caplog.text


def test_swapped_and_foreign_shards() -> None:
    store = filled()
    first, second = shards(store)
    other = open_store({**FACTS, "cut": "layer2"})
    foreign = other.folder / first.name
    foreign.write_bytes(first.read_bytes())  # whole, but of another fingerprint
    assert not open_store({**FACTS, "cut": "layer2"}).known
    assert foreign.with_suffix(".damaged").exists()
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    assert not open_store(FACTS).known


def test_a_shard_that_is_gone_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    store = filled()
    victim, other = shards(store)
    victim.unlink()
    again = open_store(FACTS)
    assert len(again.known) in (2, 4)
    assert f"{victim} is gone; what it held is computed again" in caplog.text
    assert str(other) not in caplog.text
    caplog.clear()
    open_store(FACTS)
    assert not caplog.records


def test_a_shard_that_is_not_listed_is_taken_in(caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(FACTS)
    store.add(DIGESTS[:4], CODES[:4])
    old = (store.folder / "manifest.json").read_bytes()
    store.add(DIGESTS[4:], CODES[4:])
    (store.folder / "manifest.json").write_bytes(old)
    assert set(open_store(FACTS).known) == set(DIGESTS)
    assert set(manifest(store)["shards"]) == {path.name for path in shards(store)}
    assert not caplog.records


@pytest.mark.parametrize("text", ["", "{", "[]", '{"facts": 1, "shards": {}}', '{"facts": {}}'])
def test_a_damaged_manifest_is_written_anew(text: str, caplog: pytest.LogCaptureFixture) -> None:
    store = filled()
    before = manifest(store)
    (store.folder / "manifest.json").write_text(text, encoding="utf-8")
    assert set(open_store(FACTS).known) == set(DIGESTS)
    assert manifest(store) == before
    assert "manifest.json is damaged; it is written anew" in caplog.text


def test_the_manifest_says_what_there_is() -> None:
    store = filled()
    found = manifest(store)
    assert (found["format"], found["facts"]) == (1, FACTS)
    assert found["shards"] == {
        path.name: {"rows": len(load_file(path)["codes"]), "bytes": path.stat().st_size}
        for path in shards(store)
    }


def test_facts_that_json_writes_otherwise_are_the_same_store() -> None:
    open_store({**FACTS, "size": (3, 4)}).add(DIGESTS, CODES)
    store = open_store({**FACTS, "size": [3, 4]})
    assert set(store.known) == set(DIGESTS)
    before = (store.folder / "manifest.json").stat().st_ino
    open_store({**FACTS, "size": (3, 4)})
    assert (store.folder / "manifest.json").stat().st_ino == before  # not written again


STEPS: dict[str, tuple[object, str]] = {
    "mkdir": (Path, "mkdir"),
    "fsync": (os, "fsync"),
    "replace": (os, "replace"),
    "write": (io, "open"),
}


class Full(io.FileIO):
    """A file on a full disk."""

    def write(self, data: object, /) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("at", range(5))
def test_a_full_disk_at_any_step_leaves_what_was_there(
    monkeypatch: pytest.MonkeyPatch, step: str, at: int
) -> None:
    filled()
    owner, name = STEPS[step]
    real: Callable = getattr(owner, name)
    calls = 0

    def full(*arguments: object, **options: object) -> object:
        nonlocal calls
        if name == "open" and "b" not in str(arguments[1:2]):
            return real(*arguments, **options)
        is_written = name != "open" or str(arguments[1]).startswith("x")
        calls += is_written
        if not is_written or calls <= at:
            return real(*arguments, **options)
        if name == "open":
            return Full(str(arguments[0]), "x")
        raise OSError(errno.ENOSPC, "No space left on device")

    message = ""
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        try:
            open_store(FACTS).add(["a" * 64], CODES[:1])
        except CacheError as error:
            message = str(error)
    failed = "No space left on device; free some space, or set TOPWORK_CACHE" in message
    assert failed == bool(message)
    if step != "fsync":  # that of a folder may fail: some file systems know no such thing
        assert failed == (calls > at)
    again = open_store(FACTS)
    assert not list(again.folder.glob("*.tmp"))
    np.testing.assert_array_equal(again.rows(DIGESTS).take(range(6)), CODES)
    again.add(["a" * 64], CODES[:1])
    np.testing.assert_array_equal(open_store(FACTS).rows(["a" * 64]).take([0]), CODES[:1])


def test_a_crash_while_writing_leaves_only_a_file_that_nobody_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = filled()

    def killed(source: object, target: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        store.add(["a" * 64], CODES[:1])
    assert set(open_store(FACTS).known) == set(DIGESTS)


def test_two_writers_of_the_same_rows_write_the_same_file() -> None:
    store = filled()
    before = {path.name: path.read_bytes() for path in shards(store)}
    filled()
    assert {path.name: path.read_bytes() for path in shards(store)} == before


def test_listing() -> None:
    assert list_stores() == []
    store = filled()
    open_store({**HALF, "cut": "layer2", "view": View(3).facts(), "runtime": {"name": "eager"}})
    found = {summary.cut: summary for summary in list_stores()}
    assert (found["layer3"].images, found["layer2"].images) == (6, 0)
    assert (found["layer3"].view, found["layer2"].view) == ("plain", "3")
    assert (found["layer3"].dtype, found["layer2"].dtype) == ("float32", "float16")
    assert (found["layer3"].runtime, found["layer2"].runtime) == ("", "eager")
    assert found["layer3"].bytes == sum(path.stat().st_size for path in shards(store))


def test_a_damaged_description_is_named_and_the_rest_is_listed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    filled()
    broken = open_store({**FACTS, "cut": "layer2"}).folder
    (broken / "manifest.json").write_text("{")
    assert [summary.cut for summary in list_stores()] == ["layer3"]
    assert str(broken) in caplog.text


@pytest.mark.parametrize("where", ["head", "codes"])
def test_a_damaged_shard_that_cannot_be_set_aside_is_still_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    victim = shards(filled())[0]
    flip(victim, 9 if where == "head" else -1)

    def refused(source: object, target: object) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(cache, "write_manifest", lambda *_: None)
        patch.setattr(os, "replace", refused)
        store = open_store(FACTS)
        if where == "codes":
            with pytest.raises(DamagedShard):
                store.rows(DIGESTS).take(range(6))
        store.refresh()
        assert len(store.known) in (2, 4)
        assert len(open_store(FACTS).known) in (2, 4)
    assert victim.exists()
    assert str(victim) in caplog.text
    store.add(DIGESTS, CODES)  # which may write the same file again
    np.testing.assert_array_equal(open_store(FACTS).rows(DIGESTS).take(range(6)), CODES)


def test_a_file_written_anew_is_not_set_aside_for_what_it_was() -> None:
    store = open_store(FACTS)
    store.add(DIGESTS, CODES)
    (victim,) = shards(store)
    good = victim.read_bytes()
    flip(victim, -1)
    rows = open_store(FACTS).rows(DIGESTS)
    victim.unlink()
    victim.write_bytes(good)  # by another process, which has found the damage first
    with pytest.raises(DamagedShard):
        rows.take([0])
    assert victim.read_bytes() == good


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == Path(os.environ["TOPWORK_CACHE"])
    monkeypatch.delenv("TOPWORK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "topwork"


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((3, 4, 5), "f4"), ((5, 4, 3), "u1"), ((7,), "f4"), ((3, 2), "f2"), ((0,), "f4")],
)
def test_rows_are_those_written_whatever_their_shape(shape: tuple[int, ...], dtype: str) -> None:
    generator = np.random.default_rng(0)
    written = generator.integers(0, 256, (6, *shape)).astype(dtype)
    facts = {**FACTS, "dtype": np.dtype(dtype).name}
    store = open_store(facts)
    store.add(DIGESTS[:1], written[:1])
    store.add(DIGESTS[1:], np.asfortranarray(written[1:]))
    for opened in (store, open_store(facts)):
        rows = opened.rows(DIGESTS)
        assert (len(rows), rows.shape, rows.dtype) == (6, shape, np.dtype(dtype))
        for indices in ([5, 0, 3, 3], [], range(6), np.array([-1, 2])):
            taken = rows.take(indices)
            np.testing.assert_array_equal(taken, written[list(indices)])
            assert taken.flags.c_contiguous
            assert taken.flags.writeable
            assert taken.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(rows.at(4), written[4])
        assert not rows.at(4).flags.writeable
        with pytest.raises(IndexError):
            rows.take([0, 6])
        with pytest.raises(IndexError):
            rows.at(-7)


run = itertools.count()


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
    st.sampled_from(["float32", "float16"]),
    st.booleans(),
)
def test_rows_of_any_store_are_those_of_one_array(sizes, random, dtype, merged) -> None:
    facts = {**FACTS, "dtype": dtype, "run": next(run)}
    store = open_store(facts)
    count = sum(sizes)
    codes = np.random.default_rng(count).normal(size=(count, 3)).astype(np.float32)
    codes[random.sample(range(count), count // 5)] *= 1e6  # too large for float16
    digests = numbered(count)
    start = 0
    for size in sizes:
        store.add(digests[start : start + size], codes[start : start + size])
        start += size
    if merged:
        store.merge()
    expected = codes.copy()
    if dtype == "float16":
        small = np.abs(codes).max(axis=1, initial=0) < 65000
        expected[small] = codes[small].astype(np.float16)
    indices = [random.randrange(count) for _ in range(2 * count)]
    for rows in (store.rows(digests), open_store(facts).rows(digests)):
        np.testing.assert_array_equal(rows.take(indices), expected[indices])
        assert [rows.at(i).tolist() for i in indices[:5]] == expected[indices[:5]].tolist()


def test_half_precision_keeps_in_full_what_does_not_fit() -> None:
    store = open_store(HALF)
    codes = CODES.copy()
    store.add(DIGESTS[:3], codes[:3])
    assert store.rows(DIGESTS[:3]).dtype == np.float16
    codes[4, 2] = 70000.0
    store.add(DIGESTS[3:], codes[3:])
    for rows in (store.rows(DIGESTS), open_store(HALF).rows(DIGESTS)):
        assert rows.dtype == np.float32
        taken = rows.take(range(6))
        np.testing.assert_array_equal(taken[4], codes[4])
        halved = np.delete(codes, 4, axis=0).astype(np.float16)
        np.testing.assert_array_equal(np.delete(taken, 4, axis=0), halved)
        assert rows.at(0).dtype == np.float32
        assert not rows.at(0).flags.writeable
    assert {load_file(path)["codes"].dtype.name for path in shards(store)} == {"float16", "float32"}


@pytest.mark.parametrize(
    ("row", "fits"),
    [
        ([0.0, 0.0], True),
        ([1.0, 1e-30], True),  # lost beside its neighbor
        ([65504.0, 1.0], True),
        ([65520.0, 1.0], False),
        ([2.0**-15, 0.0], True),
        ([2.0**-16 * (1 + 2.0**-9), 0.0], False),
        ([1e-9, 0.0], False),
        ([np.inf, 1.0], True),
        ([np.nan, 1.0], True),
        ([np.nan, 1e-9], False),
        ([np.inf, 1e9], False),
        ([np.nan, np.inf], True),
    ],
)
def test_what_half_precision_can_hold(row: list[float], fits: bool) -> None:
    assert fits_half(np.array([row, [1.0, 1.0]], np.float32)).tolist() == [fits, True]


def test_half_precision_moves_no_value_far() -> None:
    generator = np.random.default_rng(0)
    scale = 2.0 ** generator.integers(-30, 20, (2000, 1))
    codes = (generator.normal(size=(2000, 8)) * scale).astype(np.float32)
    fits = fits_half(codes)
    assert 0.3 < fits.mean() < 0.9
    with np.errstate(over="ignore"):
        errors = np.abs(codes.astype(np.float16).astype(np.float64) - codes).max(1)
    np.testing.assert_array_equal(fits, errors <= 2**-10 * np.abs(codes).max(1))


def test_a_row_that_is_absent_is_never_zeros() -> None:
    rows = filled().rows([DIGESTS[0], "f" * 64, DIGESTS[5]], absent={"f" * 64})
    np.testing.assert_array_equal(rows.take([0, 2]), CODES[[0, 5]])
    for index in (1, -2):
        with pytest.raises(IndexError, match=rf"row {index} is absent"):
            rows.take([0, index])
    with pytest.raises(IndexError, match="row 1 is absent"):
        rows.at(1)


def test_rows_outlive_the_files_they_came_from() -> None:
    filled()
    store = open_store(FACTS)
    rows = store.rows(DIGESTS)
    for shard in shards(store):
        shard.unlink()
    np.testing.assert_array_equal(rows.take(range(6)), CODES)
    store.refresh()
    np.testing.assert_array_equal(store.rows(DIGESTS).take(range(6)), CODES)
    assert not open_store(FACTS).known


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted there")
def test_no_shard_is_held_open() -> None:
    store = open_store(FACTS)
    for row in range(6):
        store.add(DIGESTS[row : row + 1], CODES[row : row + 1])
    before = len(os.listdir("/proc/self/fd"))
    again = open_store(FACTS)
    again.rows(DIGESTS).take(range(6))
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(again.shards) == 6


def test_shards_that_another_process_adds_disturb_nothing() -> None:
    filled()
    mine, theirs = open_store(FACTS), open_store(FACTS)
    theirs.add(["a" * 64], CODES[:1] + 1)
    assert "a" * 64 not in mine
    mine.refresh()
    assert "a" * 64 in mine
    mine.add(["b" * 64], CODES[:1] + 2)
    mine.add(["a" * 64], CODES[:1] + 1)
    np.testing.assert_array_equal(mine.rows([*DIGESTS, "a" * 64]).take([6, 0]), CODES[[0, 0]] + ONE)
    assert set(open_store(FACTS).known) == {*DIGESTS, "a" * 64, "b" * 64}
    assert set(manifest(mine)["shards"]) == {path.name for path in shards(mine)}


ONE = np.array([[1], [0]], np.float32)


def parts_of(count: int, sizes: list[int]) -> tuple[list[str], np.ndarray, list[slice]]:
    codes = np.random.default_rng(count).normal(size=(count, 5)).astype(np.float32)
    ends = np.cumsum([0, *sizes]).tolist()
    slices = [slice(start, end) for start, end in itertools.pairwise(ends)]
    return numbered(count), codes, slices


def test_merging_gives_the_same_bytes_whoever_wrote_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MERGED_BYTES", 20 * 20)  # twenty rows
    digests, codes, _ = parts_of(50, [50])
    found = []
    for run, sizes in enumerate(([9] * 5 + [5], [1, 4] * 10, [5, 9, 8, 7, 6, 5, 4, 3, 2, 1])):
        monkeypatch.setenv("TOPWORK_CACHE", f"{os.environ['TOPWORK_CACHE']}-{run}")
        order = np.random.default_rng(run).permutation(50)
        ends = np.cumsum([0, *sizes])
        store = open_store(HALF)
        for start, end in itertools.pairwise(ends):
            store.add([digests[i] for i in order[start:end]], codes[order[start:end]])
        store.merge()
        found.append({path.name: path.read_bytes() for path in shards(store)})
        assert set(manifest(store)["shards"]) == found[-1].keys()
        assert len(found[-1]) == len(store.shards) == 2  # of 10 bytes a row: 40 and 10 rows
        for opened in (store, open_store(HALF)):
            taken = opened.rows(digests).take(range(50))
            np.testing.assert_array_equal(taken, codes.astype(np.float16))
        store.merge()
        assert {path.name: path.read_bytes() for path in shards(store)} == found[-1]
    assert found[0] == found[1] == found[2]
    by_name = {name: load_size(data) for name, data in found[0].items()}
    assert sorted(by_name.values()) == [10, 40]


def load_size(data: bytes) -> int:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["codes"]["shape"][0]


def test_merging_leaves_large_shards_and_single_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MERGED_BYTES", 20 * 20)
    digests, codes, slices = parts_of(25, [10, 3, 12])
    store = open_store(FACTS)
    for part in slices:
        store.add(digests[part], codes[part])
    before = shards(store)
    store.merge()
    assert shards(store) == before


def test_merging_drops_what_is_there_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    digests, codes, _ = parts_of(12, [12])
    first, second = open_store(FACTS), open_store(FACTS)
    first.add(digests[:8], codes[:8])
    write_shard(second.folder, second.key, digests[4:], codes[4:])  # knowing nothing of the first
    second.merge()
    (path,) = shards(second)
    tensors = load_file(path)
    assert [row.tobytes().hex() for row in tensors["digests"]] == sorted(digests)
    np.testing.assert_array_equal(second.rows(digests).take(range(12)), codes)
    assert len(second.shards) == 1
    # A part of what is there already gives the file that is there; it must stay.
    write_shard(second.folder, second.key, digests[3:7], codes[3:7])
    second.merge()
    assert shards(second) == [path]


def test_others_go_on_while_shards_are_merged() -> None:
    filled()
    theirs = open_store(FACTS)
    rows = theirs.rows(DIGESTS)
    mine = open_store(FACTS)
    mine.merge()
    assert len(shards(mine)) == 1
    np.testing.assert_array_equal(rows.take(range(6)), CODES)
    theirs.add(["a" * 64], CODES[:1])
    assert [place >> ROW_BITS for place in theirs.known.values()] == [0] * 6 + [1]
    np.testing.assert_array_equal(theirs.rows(DIGESTS).take(range(6)), CODES)
    assert set(manifest(mine)["shards"]) == {path.name for path in shards(mine)}


def test_a_crash_while_merged_shards_are_removed_leaves_nothing_to_complain_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = filled()
    unlink = Path.unlink

    def killed(path: Path) -> None:
        unlink(path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", killed)
        store.merge()
    again = open_store(FACTS)
    assert not caplog.records
    assert len(shards(again)) == 2
    again.merge()
    assert len(shards(again)) == 1
    np.testing.assert_array_equal(open_store(FACTS).rows(DIGESTS).take(range(6)), CODES)


def test_shards_merged_between_listing_and_opening_are_listed_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    filled()
    merging = open_store(FACTS)
    real = cache.open_shard

    def late(path: Path, key: str, always: bool) -> object:
        monkeypatch.setattr(cache, "open_shard", real)
        merging.merge()
        return real(path, key, always)

    monkeypatch.setattr(cache, "open_shard", late)
    store = open_store(FACTS)
    np.testing.assert_array_equal(store.rows(DIGESTS).take(range(6)), CODES)
    assert not caplog.records


def test_what_another_merge_is_removing_costs_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has written all rows to one shard; between any two looks the first part goes."""
    begun, listed = cache_folder(), cache.shard_names
    for number in range(1, 100):
        monkeypatch.setenv("TOPWORK_CACHE", f"{begun}-{number}")
        store = open_store(FACTS)
        for start in (0, 2, 4):
            store.add(DIGESTS[start : start + 2], CODES[start : start + 2])
        first, *others = shards(store)
        whole = write_shard(store.folder, store.key, DIGESTS, CODES)
        looks = 0

        def look(folder: Path, number: int = number, first: Path = first) -> set[str]:
            nonlocal looks
            looks += 1
            if looks == number:
                first.unlink(missing_ok=True)
            return listed(folder)

        with monkeypatch.context() as patch:
            patch.setattr(cache, "shard_names", look)
            store.merge()
        for part in others:  # the other merge goes on
            part.unlink(missing_ok=True)
        assert shards(store) == [whole]
        np.testing.assert_array_equal(open_store(FACTS).rows(DIGESTS).take(range(6)), CODES)
        if looks < number:
            break
    assert 3 < number < 99


def test_a_manifest_that_is_about_to_be_written_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = filled()
    before = (store.folder / "manifest.json").read_bytes()
    store.merge()
    (store.folder / "manifest.json").write_bytes(before)
    monkeypatch.setattr(cache.time, "sleep", lambda seconds: store.record())
    assert set(open_store(FACTS).known) == set(DIGESTS)
    assert not caplog.records


def test_merging_finds_damage_and_loses_nothing_else() -> None:
    victim, other = shards(filled())
    flip(victim, -1)
    store = open_store(FACTS)
    with pytest.raises(DamagedShard):
        store.merge()
    store.refresh()
    assert other.exists()
    held = [i for i, digest in enumerate(DIGESTS) if digest in store]
    assert len(held) in (2, 4)
    np.testing.assert_array_equal(
        store.rows([DIGESTS[i] for i in held]).take(range(len(held))), CODES[held]
    )


@pytest.mark.parametrize("at", range(8))
def test_merging_without_room_is_put_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, at: int
) -> None:
    store = filled()
    real, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        store.merge()
    np.testing.assert_array_equal(store.rows(DIGESTS).take(range(6)), CODES)
    np.testing.assert_array_equal(open_store(FACTS).rows(DIGESTS).take(range(6)), CODES)
    assert not list(store.folder.glob("*.tmp"))
    if len(shards(store)) == 2:
        assert "the small shards of" in caplog.text


def test_a_store_that_is_pruned_while_it_is_filled_goes_on() -> None:
    store = filled()
    for path in store.folder.iterdir():
        path.unlink()
    store.folder.rmdir()
    store.add(["a" * 64], CODES[:1])
    expected = np.concatenate([CODES, CODES[:1]])
    np.testing.assert_array_equal(store.rows([*DIGESTS, "a" * 64]).take(range(7)), expected)
    assert set(open_store(FACTS).known) == {"a" * 64}


def test_files_that_are_whole_but_no_shards_are_set_aside(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = filled()
    key = {"key": store.key, "block_rows": "2"}
    digests = np.zeros((2, 32), np.uint8)
    checksums = digests[:1]
    parts = {"codes": CODES[:2], "digests": digests, "checksums": checksums}
    for data in (
        b"",
        b"some text that is long enough",
        (2**63 - 1).to_bytes(8, "little"),
        b"\2\0\0\0\0\0\0\0[]",
        (10**5).to_bytes(8, "little") + b"[" * 10**5,
        save({"codes": CODES[:2]}, key),
        save({**parts, "codes": CODES[:3]}, key),
        save({**parts, "codes": CODES[:2].astype(np.float64)}, key),
        save({**parts, "more": CODES}, key),
        save(parts),
        save(parts, {"key": store.key}),
        save(parts, {**key, "block_rows": "0"}),
        save(parts, {**key, "block_rows": "-1"}),
        save(parts, {**key, "block_rows": "1"}),
        save(parts, key) + b"1",
        save(parts, key)[:-1],
    ):
        name = f"{hashlib.sha256(data).hexdigest()}.safetensors"
        (store.folder / name).write_bytes(data)
        assert set(open_store(FACTS).known) == set(DIGESTS)
        assert not (store.folder / name).exists()
        assert f"{name} is " in caplog.text


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="everything may be read")
def test_a_shard_that_may_not_be_read_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    victim = shards(filled())[0]
    victim.chmod(0)
    for _ in range(2):
        assert len(open_store(FACTS).known) in (2, 4)
    assert caplog.text.count("cannot be read") == 1


def test_a_cache_that_cannot_be_made_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("TOPWORK_CACHE", str(tmp_path / "file"))
    with pytest.raises(CacheError, match=r"cannot write to the cache at .*; free some space, or"):
        open_store(FACTS)


def test_nothing_is_logged_where_nothing_is_wrong(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        store = filled()
        store.merge()
        open_store(FACTS).rows(DIGESTS).take(range(6))
    assert not caplog.records
    assert builtins.sorted(path.suffix for path in store.folder.iterdir()) == [
        ".json",
        ".safetensors",
    ]
