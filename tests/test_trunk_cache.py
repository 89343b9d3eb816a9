"""The cache never lies: what is damaged, stale or foreign is found, named and computed again."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

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
    np.testing.assert_array_equal(again.rows([DIGESTS[i] for i in order]), CODES[order])
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
        np.testing.assert_array_equal(found.rows([DIGESTS[i] for i in held]), CODES[held])
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
    np.testing.assert_array_equal(open_store(FACTS).rows(DIGESTS), CODES)


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
    open_store({**FACTS, "cut": "layer2"})
    found = {summary.cut: summary for summary in list_stores()}
    assert (found["layer3"].images, found["layer2"].images) == (6, 0)
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
