"""The cache never lies: what is damaged, stale or foreign is found, named and computed again."""

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from topwork.data.augment import View
from topwork.errors import CacheError
from topwork.trunk.cache import CodeStore, cache_folder, list_stores, open_store

FACTS = {"cut": "layer3", "pool": "avg", "weights": "w"}
DIGESTS = [f"{i:064x}" for i in range(6)]
CODES = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)


def filled() -> CodeStore:
    store = open_store(FACTS)
    store.add(DIGESTS[:4], CODES[:4])
    store.add(DIGESTS[4:], CODES[4:])
    return store


def shards(store: CodeStore) -> list[Path]:
    return sorted(store.folder.glob("*.safetensors"))


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
    from safetensors.torch import load_file

    tensors = load_file(shards(filled())[0])
    assert {name: tuple(t.shape)[1] for name, t in tensors.items()} == {"codes": 5, "digests": 32}


def test_every_flipped_bit_and_every_truncation_is_found(caplog: pytest.LogCaptureFixture) -> None:
    store = filled()
    victim = shards(store)[0]
    whole = victim.read_bytes()
    damages = [whole[:length] for length in range(0, len(whole), 7)]
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << (position % 8)
        damages.append(bytes(flipped))
    for damage in damages:
        victim.write_bytes(damage)
        found = open_store(FACTS)
        held = [i for i, digest in enumerate(DIGESTS) if digest in found]
        assert len(held) in (2, 4)  # the other shard's
        np.testing.assert_array_equal(
            found.rows([DIGESTS[i] for i in held]).take(range(len(held))), CODES[held]
        )
        assert not victim.exists()
        assert victim.with_suffix(".damaged").read_bytes() == damage
    assert str(victim) in caplog.text
    assert "computed again" in caplog.text


def test_swapped_foreign_and_missing_shards() -> None:
    store = filled()
    first, second = shards(store)
    other = open_store({**FACTS, "cut": "layer2"})
    foreign = other.folder / first.name
    foreign.write_bytes(first.read_bytes())  # whole, but of another fingerprint
    assert not open_store({**FACTS, "cut": "layer2"}).known
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    assert not open_store(FACTS).known
    open_store(FACTS).add(DIGESTS, CODES)
    shards(store)[0].unlink()
    assert not open_store(FACTS).known


def test_a_full_disk_leaves_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    message = "No space left on device; free some space, or set TOPWORK_CACHE"
    with monkeypatch.context() as patch, pytest.raises(CacheError, match=message):
        patch.setattr(os, "fsync", full)
        store.add(["a" * 64], CODES[:1])
    assert not list(store.folder.glob("*.tmp"))
    assert len(shards(store)) == 2
    np.testing.assert_array_equal(open_store(FACTS).rows(DIGESTS).take(range(6)), CODES)


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
    open_store({**FACTS, "cut": "layer2", "view": View(3).facts()})
    found = {summary.cut: summary for summary in list_stores()}
    assert (found["layer3"].images, found["layer2"].images) == (6, 0)
    assert (found["layer3"].view, found["layer2"].view) == ("plain", "3")
    assert found["layer3"].bytes == sum(path.stat().st_size for path in shards(store))
    assert json.loads((store.folder / "facts.json").read_text()) == FACTS


def test_a_damaged_description_is_named_and_the_rest_is_listed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    filled()
    broken = open_store({**FACTS, "cut": "layer2"}).folder / "facts.json"
    broken.write_text("{")
    assert [summary.cut for summary in list_stores()] == ["layer3"]
    assert str(broken) in caplog.text


def test_a_damaged_shard_that_cannot_be_set_aside_is_still_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    victim = shards(filled())[0]
    victim.write_bytes(victim.read_bytes()[:-1])

    def refused(source: object, target: object) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refused)
        assert len(open_store(FACTS).known) in (2, 4)
    assert str(victim) in caplog.text


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == Path(os.environ["TOPWORK_CACHE"])
    monkeypatch.delenv("TOPWORK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "topwork"


@pytest.mark.parametrize(("shape", "dtype"), [((3, 4, 5), "f4"), ((5, 4, 3), "u1"), ((7,), "f4")])
def test_rows_are_those_written_whatever_their_shape(shape: tuple[int, ...], dtype: str) -> None:
    generator = np.random.default_rng(0)
    written = generator.integers(0, 256, (6, *shape)).astype(dtype)
    store = open_store(FACTS)
    store.add(DIGESTS[:1], written[:1])
    store.add(DIGESTS[1:], np.asfortranarray(written[1:]))
    for opened in (store, open_store(FACTS)):
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


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted there")
def test_no_shard_is_held_open() -> None:
    store = open_store(FACTS)
    for row in range(6):
        store.add(DIGESTS[row : row + 1], CODES[row : row + 1])
    before = len(os.listdir("/proc/self/fd"))
    again = open_store(FACTS)
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(again.shards) == 6


def test_shards_that_another_process_adds_disturb_nothing() -> None:
    filled()
    mine, theirs = open_store(FACTS), open_store(FACTS)
    theirs.add(["a" * 64], CODES[:1] + 1)
    assert "a" * 64 not in mine
    mine.add(["b" * 64], CODES[:1] + 2)
    mine.add(["a" * 64], CODES[:1] + 1)
    np.testing.assert_array_equal(mine.rows([*DIGESTS, "a" * 64]).take([6, 0]), CODES[[0, 0]] + ONE)
    assert set(open_store(FACTS).known) == {*DIGESTS, "a" * 64, "b" * 64}


ONE = np.array([[1], [0]], np.float32)


def test_files_that_are_whole_but_no_shards_are_set_aside(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = filled()
    key = {"key": store.key}
    digests = np.zeros((2, 32), np.uint8)
    for data in (
        b"",
        b"some text that is long enough",
        (2**63 - 1).to_bytes(8, "little"),
        b"\2\0\0\0\0\0\0\0[]",
        save({"codes": CODES[:2]}, key),
        save({"codes": CODES[:3], "digests": digests}, key),
        save({"codes": CODES[:2].astype(np.float64), "digests": digests}, key),
        save({"codes": CODES[:2], "digests": digests}),
    ):
        name = f"{hashlib.sha256(data).hexdigest()}.safetensors"
        (store.folder / name).write_bytes(data)
        assert set(open_store(FACTS).known) == set(DIGESTS)
        assert not (store.folder / name).exists()
        assert f"{name} is no shard" in caplog.text
