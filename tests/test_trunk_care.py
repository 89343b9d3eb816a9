"""Looking after the cache: what verify, repair, prune and explain find and do."""

import json
import os
import shutil
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from topwork.cli_cache import cache_app
from topwork.errors import UsageError
from topwork.trunk import limit
from topwork.trunk.cache import CodeStore, cache_folder, list_stores, open_store
from topwork.trunk.care import find_stores, parse_age, prune, repair, verify
from topwork.trunk.explain import WAY, differences, explain
from topwork.trunk.fingerprint import key_of
from topwork.trunk.limit import make_room, parse_size
from topwork.trunk.shards import forget_checks

FACTS = {
    "format": 2,
    "decoding": {"library": "pillow", "version": "13"},
    "preprocessing": {"size": [224, 224], "crop": 0.875},
    "view": "plain",
    "weights": "a" * 64,
    "program": "b" * 64,
    "code": "e" * 64,
    "cut": "layer3",
    "pool": "avg",
    "dtype": "float32",
    "runtime": {"name": "eager"},
    "versions": {"torch": "2.15", "timm": "1.0"},
    "canary": "c" * 64,
}
DIGESTS = [f"{i:064x}" for i in range(6)]
CODES = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32)
DAY = 86400


@pytest.fixture(autouse=True)
def forgetful() -> None:
    forget_checks()


def filled(**changes: object) -> CodeStore:
    store = open_store({**FACTS, **changes})
    store.add(DIGESTS[:4], CODES[:4])
    store.add(DIGESTS[4:], CODES[4:])
    return store


def shards(store: CodeStore) -> list[Path]:
    return sorted(store.folder.glob("*.safetensors"))


def flip(path: Path, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def grow_old(store: CodeStore, days: float) -> None:
    then = time.time() - days * DAY
    for path in store.folder.iterdir():
        os.utime(path, (then, then))


def snapshot() -> dict[str, bytes]:
    files = (path for path in cache_folder().rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files}


def test_verify_finds_every_damage_and_changes_nothing() -> None:
    good, bad, worse = filled(), filled(cut="layer2"), filled(cut="layer1")
    flip(shards(bad)[0])
    shards(bad)[1].unlink()
    flip(shards(worse)[0], 20)
    (worse.folder / "manifest.json").write_text("{")
    foreign = good.folder / shards(worse)[1].name
    shutil.copy(shards(worse)[1], foreign)
    before = snapshot()
    found = {problem.path: problem.problem for problem in verify(find_stores([]))}
    assert found == {
        str(foreign): "belongs to another fingerprint",
        str(shards(bad)[0]): "is damaged in 1 of 1 blocks",
        str(bad.shards[0].path if shards(bad)[0] != bad.shards[0].path else bad.shards[1].path): (
            "is gone"
        ),
        str(shards(worse)[0]): "is no shard, or its header is damaged",
        str(worse.folder / "manifest.json"): (
            f"cannot be used ({worse.folder / 'manifest.json'} is damaged)"
        ),
    }
    assert snapshot() == before
    assert verify([good.folder])[0].path == str(foreign)


@pytest.mark.parametrize(("old", "new"), [(b"layer3", b"layer4"), (b'"bytes": ', b'"bytes": 1')])
def test_verify_finds_what_is_wrong_in_a_manifest(old: bytes, new: bytes) -> None:
    store = filled()
    path = store.folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(old, new))
    assert verify([store.folder])
    open_store(FACTS)
    assert verify([store.folder]) == []


def test_a_whole_cache_is_whole() -> None:
    for cut in ("layer1", "layer2"):
        filled(cut=cut).merge()
    assert verify(find_stores([])) == []
    assert verify([]) == []
    shutil.rmtree(cache_folder())
    assert verify(find_stores([])) == []


def test_repair_takes_what_is_damaged_out_of_use(caplog: pytest.LogCaptureFixture) -> None:
    store, other = filled(), filled(cut="layer2")
    victim, whole = shards(store)
    flip(victim)
    (other.folder / "manifest.json").write_text("{")
    old, new = store.folder / "old.tmp", store.folder / "new.tmp"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    done = repair(find_stores([]))
    assert {problem.path for problem in done.problems} == {
        str(victim),
        str(other.folder / "manifest.json"),
    }
    assert str(old) in done.removed
    assert not old.exists()
    assert new.exists()
    assert not victim.exists()
    assert not victim.with_suffix(".damaged").exists()
    caplog.clear()
    assert verify([store.folder]) == []
    (known,) = (open_store(FACTS).known,)
    assert len(known) in (2, 4)
    assert not caplog.records
    assert len(open_store({**FACTS, "cut": "layer2"}).known) == 6
    assert verify(find_stores([])) == []
    assert repair(find_stores([])).problems == []
    assert whole.exists()


def test_prune_removes_what_was_not_used_for_longest() -> None:
    stores = [filled(cut=f"layer{i}") for i in range(4)]
    for store, days in zip(stores, (3, 40, 1, 20), strict=True):
        grow_old(store, days)
    size = limit.holding_of(stores[0].folder).bytes
    before = snapshot()
    going = prune(limit=2 * size + 10, dry_run=True)
    assert snapshot() == before
    assert [removal.path for removal in going] == [str(stores[1].folder), str(stores[3].folder)]
    assert [removal.why for removal in going] == [
        f"beyond the limit; not used for {days} d" for days in (40, 20)
    ]
    assert prune(limit=2 * size + 10) == going
    assert {store.cut for store in list_stores()} == {"layer0", "layer2"}
    assert not stores[1].folder.exists()
    assert prune(limit=2 * size + 10) == []
    assert len(prune(older=2 * DAY)) == 1
    assert [store.cut for store in list_stores()] == ["layer2"]
    assert len(prune([stores[2].folder])) == 1
    assert list_stores() == []


def test_opening_a_store_counts_as_use() -> None:
    first, second = filled(cut="layer1"), filled(cut="layer2")
    grow_old(first, 5)
    grow_old(second, 4)
    open_store(first.facts)
    (going,) = prune(limit=limit.holding_of(first.folder).bytes + 10)
    assert going.path == str(second.folder)


def test_compiled_trunks_count_and_go_too() -> None:
    store = filled()
    trunk = cache_folder() / "trunks" / "abc"
    trunk.mkdir(parents=True)
    (trunk / "trunk.onnx").write_bytes(bytes(5000))
    os.utime(trunk / "trunk.onnx", (0, 0))
    (going,) = prune(limit=5000)
    assert (going.path, going.bytes) == (str(trunk), 5000)
    assert not trunk.exists()
    assert store.folder.exists()


def test_prune_removes_leftovers() -> None:
    store = filled()
    old, new = store.folder / "a.tmp", store.folder / "b.tmp"
    aside = store.folder / "c.damaged"
    unfinished = cache_folder() / "trunks" / "d.tmp"
    unfinished.mkdir(parents=True)
    (unfinished / "trunk.onnx").write_bytes(bytes(10))
    claim = cache_folder() / "claims" / "e.claim"
    claim.parent.mkdir()
    foreign = cache_folder() / "mine.tmp"
    for path in (old, new, aside, claim, foreign):
        path.write_bytes(b"123")
    for path in (old, claim, unfinished, foreign):
        os.utime(path, (0, 0))
    found = {removal.path: removal.bytes for removal in prune()}
    assert found == {str(old): 3, str(aside): 3, str(claim): 3, str(unfinished): 10}
    assert new.exists()
    assert foreign.exists()
    assert not unfinished.exists()
    assert verify([store.folder]) == []


def test_a_store_makes_room_by_what_was_not_used_for_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("topwork.trunk.cache._in_use", set())
    stores = [filled(cut=f"layer{i}") for i in range(3)]
    size = limit.holding_of(stores[0].folder).bytes
    for store, days in zip(stores, (3, 1, 2), strict=True):
        grow_old(store, days)
    monkeypatch.setenv("TOPWORK_CACHE_LIMIT", str(3 * size + 100))
    monkeypatch.setattr("topwork.trunk.cache._in_use", {stores[0].folder})  # by this process
    newest = open_store({**FACTS, "cut": "new"})
    newest.add(DIGESTS, CODES)
    assert {store.cut for store in list_stores()} == {"layer0", "layer1", "new"}
    monkeypatch.setenv("TOPWORK_CACHE_LIMIT", "1B")
    newest.add(["a" * 64], CODES[:1])
    assert {store.cut for store in list_stores()} == {"layer0", "new"}
    assert len(open_store({**FACTS, "cut": "new"}).known) == 7


Disk = namedtuple("Disk", "total used free")


def test_without_a_limit_half_of_what_is_free_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("topwork.trunk.cache._in_use", set())
    old, new = filled(cut="layer1"), filled(cut="layer2")
    grow_old(old, 1)
    held = sum(holding.bytes for holding in limit.holdings(cache_folder()))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(0, 0, held + 2000))
    make_room(cache_folder(), 1000, {})
    assert old.folder.exists()
    make_room(cache_folder(), 1001, {})
    assert not old.folder.exists()
    assert new.folder.exists()


def test_a_limit_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled()
    monkeypatch.setenv("TOPWORK_CACHE_LIMIT", "much")
    expected = "TOPWORK_CACHE_LIMIT: 'much' is no size; write it like 500MB or 20GB"
    with pytest.raises(UsageError, match=expected):
        store.add(["a" * 64], CODES[:1])
    with pytest.raises(UsageError, match=expected):
        prune()


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("7", 7), ("5b", 5), (" 2 KB ", 2000), ("1e3MB", 10**9), ("0.5TB", 5 * 10**11)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "nan", "inf", "5PB", "5 G", "five"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is no size"):
        parse_size(text)


@pytest.mark.parametrize(("text", "age"), [("0s", 0), ("5m", 300), ("1.5h", 5400), ("2d", 172800)])
def test_ages(text: str, age: float) -> None:
    assert parse_age(text) == age


@pytest.mark.parametrize("text", ["", "d", "5", "-1d", "nand", "infd", "2w"])
def test_what_is_no_age(text: str) -> None:
    with pytest.raises(UsageError, match="is no duration"):
        parse_age(text)


def write_record(folder: Path, keys: list[str]) -> Path:
    folder.mkdir()
    record = {"cached_codes": {"keys": keys}}
    (folder / "record.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def test_stores_are_found_by_beginnings_of_keys_and_by_runs(tmp_path: Path) -> None:
    stores = [filled(cut=f"layer{i}") for i in range(20)]
    keys = [store.key for store in stores]
    assert find_stores([]) == sorted(store.folder for store in stores)
    assert find_stores([keys[3], keys[1][:12].upper(), keys[3][:20]]) == [
        stores[3].folder,
        stores[1].folder,
    ]
    run = write_record(tmp_path / "run", [keys[2], "f" * 64, keys[5]])
    assert set(find_stores([str(run)])) == {stores[2].folder, stores[5].folder}
    with pytest.raises(UsageError, match="the cache holds none of the codes of this run"):
        find_stores([str(write_record(tmp_path / "other", ["f" * 64]))])
    (tmp_path / "other" / "record.json").write_text("{}")
    with pytest.raises(UsageError, match=r"record\.json names no cached codes; choose a run of"):
        find_stores([str(tmp_path / "other")])
    twice = next(key[0] for key in keys if sum(other[0] == key[0] for other in keys) > 1)
    with pytest.raises(UsageError, match=f"'{twice}' begins .* keys .*; give more of it"):
        find_stores([twice])
    wrong = keys[4][:7] + ("0" if keys[4][7] != "0" else "1")
    with pytest.raises(UsageError, match=f"begins with '{wrong}'; near ones are .*{keys[4][:8]}"):
        find_stores([wrong])
    with pytest.raises(UsageError, match="no key in the cache begins with ''"):
        find_stores([""])


CHANGES: dict[str, tuple[object, str]] = {
    "decoding": ({"library": "simplejpeg", "version": "13"}, "decoding.library"),
    "preprocessing": ({"size": [224, 224], "crop": 1.0}, "preprocessing.crop"),
    "view": ({"number": 1, "flip": True}, "view"),
    "weights": ("d" * 64, "weights"),
    "program": ("d" * 64, "program"),
    "code": ("d" * 64, "code"),
    "cut": ("layer4", "cut"),
    "pool": ("none", "pool"),
    "dtype": ("float16", "dtype"),
    "runtime": ({"name": "onnxruntime", "version": "1.22"}, "runtime.name"),
    "versions": ({"torch": "2.16", "timm": "1.0"}, "versions.torch"),
    "format": (3, "format"),
    "canary": ("d" * 64, "canary"),
}


@pytest.mark.parametrize("fact", CHANGES)
def test_explain_names_the_first_thing_that_made_the_key_differ(fact: str) -> None:
    value, name = CHANGES[fact]
    later = {other: CHANGES[other][0] for other in list(CHANGES)[list(CHANGES).index(fact) + 1 :]}
    for changes in ({fact: value}, {fact: value, **later}):
        one, other = filled(), filled(**changes)
        (found,) = explain(one.key, other.key)
        assert (found.first, found.second) == (one.key, other.key)
        assert found.differences[0].fact == name
        facts = [difference.fact.partition(".")[0] for difference in found.differences]
        assert set(facts) == changes.keys()
        assert found.differences[0].meaning == WAY[fact]
        assert json.loads(json.dumps(found.differences[0].first)) is not None


def test_the_order_of_reasons_is_that_of_the_facts_there_are() -> None:
    assert list(CHANGES) == [fact for fact in WAY if fact != "rendering"]


def test_explain_compares_with_the_most_similar() -> None:
    one = filled()
    filled(cut="layer1", pool="none", weights="d" * 64)
    near = filled(cut="layer2", canary="e" * 64)
    filled(cut="layer4", weights="f" * 64, canary="f" * 64)
    (found,) = explain(one.key[:10])
    assert found.second == near.key
    assert [difference.fact for difference in found.differences] == ["cut", "canary"]
    assert explain(one.key, one.key)[0].differences == ()


def test_explain_compares_the_stores_of_runs(tmp_path: Path) -> None:
    ours = [filled(cut="layer1"), filled(cut="layer2")]
    theirs = [filled(cut="layer1", weights="d" * 64), filled(cut="layer2", weights="d" * 64)]
    runs = [
        write_record(tmp_path / name, [store.key for store in stores])
        for name, stores in (("ours", ours), ("theirs", theirs))
    ]
    for found in (explain(str(runs[0]), str(runs[1])), explain(str(runs[0]))):
        assert {(c.first, c.second) for c in found} == {
            (one.key, other.key) for one, other in zip(ours, theirs, strict=True)
        }
        assert all([d.fact for d in c.differences] == ["weights"] for c in found)


def test_explain_says_what_it_cannot() -> None:
    store = filled()
    with pytest.raises(UsageError, match="nothing in the cache to compare it with"):
        explain(store.key)
    filled(cut="layer1")
    (store.folder / "manifest.json").unlink()
    with pytest.raises(UsageError, match="has no manifest that can be read"):
        explain(store.key)


def test_facts_that_only_one_has_differ() -> None:
    (found,) = differences({"cut": "a", "new": 1}, {"cut": "a"})
    assert (found.fact, found.first, found.second) == ("new", 1, None)
    assert key_of({"cut": "a"}) != key_of({"cut": "a", "new": 1})


Output = pytest.CaptureFixture[str]


def command(capfd: Output, *arguments: str) -> tuple[int, str]:
    """Return the exit code and what was printed on stdout."""
    capfd.readouterr()
    code = cache_app([*arguments], prog_name="topwork cache", standalone_mode=False)
    return code or 0, capfd.readouterr().out


def as_json(capfd: Output, *arguments: str) -> tuple[int, dict]:
    code, out = command(capfd, *arguments, "--json")
    return code, json.loads(out)


def test_ls_prints_what_there_is(capfd: Output) -> None:
    assert command(capfd, "ls") == (0, f"{cache_folder()}: 0 stores, 0 B\n")
    store = filled(view={"number": 7}, dtype="float16")
    code, found = as_json(capfd, "ls")
    assert (code, found["folder"]) == (0, str(cache_folder()))
    assert found["stores"][0]["key"] == store.key
    assert found["stores"][0]["images"] == 6
    printed = command(capfd, "ls")[1]
    assert "1 stores" in printed
    row = printed.splitlines()[-1].split()
    assert row[:7] == [store.key[:12], "layer3", "avg", "7", "float16", "eager", "6"]


def test_verify_exits_with_1_on_damage(capfd: Output) -> None:
    store = filled()
    other = filled(cut="layer1")
    assert command(capfd, "verify") == (0, "2 stores read: all is whole\n")
    victim = shards(store)[0]
    flip(victim)
    problem = {"path": str(victim), "problem": "is damaged in 1 of 1 blocks"}
    assert as_json(capfd, "verify") == (1, {"stores": 2, "damaged": [problem]})
    code, printed = command(capfd, "verify", store.key[:10])
    assert code == 1
    assert printed.splitlines() == [
        f"{victim} is damaged in 1 of 1 blocks",
        "1 stores read: 1 files are damaged or gone",
    ]
    assert command(capfd, "verify", other.key[:10])[0] == 0


def test_repair_says_what_it_did(capfd: Output) -> None:
    victim = shards(filled())[0]
    flip(victim)
    code, printed = command(capfd, "repair")
    assert code == 0
    assert printed.splitlines() == [
        f"{victim} is damaged in 1 of 1 blocks",
        "1 stores read: 1 files are damaged or gone; 1 files removed",
        "What is lost is computed again when it is next needed.",
    ]
    code, found = as_json(capfd, "repair")
    assert (code, found) == (0, {"stores": 1, "problems": [], "removed": []})


def test_prune_prints_what_it_frees(capfd: Output) -> None:
    store, other = filled(), filled(cut="layer1")
    grow_old(store, 50)
    size = limit.holding_of(store.folder).bytes
    expected = [{"path": str(store.folder), "bytes": size, "why": "not used for 50 d"}]
    for dry_run in (True, False):
        options = ["--dry-run"] * dry_run
        code, found = as_json(capfd, "prune", "--older", "30d", *options)
        assert (code, found) == (0, {"dry_run": dry_run, "bytes": size, "removed": expected})
    assert not store.folder.exists()
    assert command(capfd, "prune") == (0, "freed 0 B\n")
    printed = command(capfd, "prune", other.key[:9])[1]
    assert printed.startswith(f"{other.folder} (")
    assert ": named\nfreed " in printed
    filled(cut="layer2")
    assert "beyond the limit; not used for 0 s" in command(capfd, "prune", "--limit", "0")[1]
    with pytest.raises(UsageError, match="'5 parsecs' is no size"):
        command(capfd, "prune", "--limit", "5 parsecs")


def test_explain_prints_the_reason_first(capfd: Output) -> None:
    one, other = filled(), filled(pool="none", canary="d" * 64)
    code, printed = command(capfd, "explain", one.key[:12], other.key[:12])
    assert code == 0
    first, _, pool, canary = printed.splitlines()
    assert first == (
        f"{one.key[:12]} and {other.key[:12]} differ in pool: how the output at the cut is pooled"
    )
    assert pool.split() == ["pool", "avg", "none"]
    assert canary.split() == ["canary", "cccccccccccc...", "dddddddddddd..."]
    (found,) = as_json(capfd, "explain", one.key)[1]["comparisons"]
    assert (found["first"], found["second"]) == (one.key, other.key)
    assert [difference["fact"] for difference in found["differences"]] == ["pool", "canary"]
    assert "are the same store" in command(capfd, "explain", one.key, one.key)[1]
    with pytest.raises(UsageError, match="no key in the cache begins with 'xyz'"):
        command(capfd, "explain", "xyz")
