"""Nothing is lost: kill -9, a full disk, several processes at once, the dead and their claims."""

import errno
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from topwork.data.loading import untracked
from topwork.errors import CacheError, ImageError
from topwork.phase import Phase
from topwork.plan import Plan
from topwork.trunk import building, cache, care, claims
from topwork.trunk.building import Built, Work, build
from topwork.trunk.cache import CodeStore, cache_folder, open_store
from topwork.trunk.claims import Claims
from topwork.trunk.shard_file import rows_of
from topwork.trunk.shards import forget_checks

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
DIGESTS = [hashlib.sha256(bytes([number])).hexdigest() for number in range(14)]
CHUNK = 5
FACTS = [{"cut": "2", "pool": "none", "dtype": "float32"}, {"cut": "4", "pool": "avg"}]
FACTS[1]["dtype"] = "float32"


def pixels_of(digest: str) -> np.ndarray:
    """A picture that its digest determines, uint8 [4, 4, 2]."""
    return np.frombuffer(bytes.fromhex(digest), np.uint8).reshape(4, 4, 2)


def codes_of(pixels: np.ndarray) -> list[np.ndarray]:
    """What two cuts of a network would give."""
    maps = pixels.astype(np.float32) / 7
    return [maps, maps.mean((1, 2))]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "SHARD_ROWS", CHUNK)
    monkeypatch.setattr(building, "POLL", 0.01)


def stores() -> list[CodeStore]:
    forget_checks()
    return [open_store(facts) for facts in FACTS]


def run(
    digests: Sequence[str] = DIGESTS,
    read: Callable[[str], np.ndarray | ImageError] = pixels_of,
    *,
    merges: bool = True,
) -> Built:
    """Build both stores as an extraction does, and merge their shards."""
    opened = stores()
    work = Work(
        read, codes_of, 2, sum(codes[0].nbytes for codes in codes_of(pixels_of("0" * 64)[None]))
    )
    built = build(opened, digests, work, untracked)
    for store in opened if merges else ():
        store.merge()
    return built


def require_right(present: Sequence[str]) -> None:
    """Look at every row of both stores that there should be, and at all others there are."""
    for number, store in enumerate(stores()):
        assert set(present) <= set(store.known)
        known = sorted(store.known)
        if known:
            expected = codes_of(np.stack([pixels_of(digest) for digest in known]))[number]
            np.testing.assert_array_equal(store.rows(known).take(range(len(known))), expected)


def files() -> dict[str, str]:
    """The SHA-256 of every shard in the cache."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in cache_folder().rglob("*.safetensors")
    }


def rubbish() -> list[str]:
    """What lies in the cache besides shards and their manifests."""
    found = (path for path in cache_folder().rglob("*") if path.is_file())
    return sorted(path.name for path in found if path.suffix not in (".safetensors", ".json"))


@pytest.fixture
def undisturbed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """The shards of a build that nothing happened to."""
    with monkeypatch.context() as patch:
        patch.setenv("TOPWORK_CACHE", str(tmp_path / "undisturbed"))
        assert run().computed == len(DIGESTS)
        assert rubbish() == []
        return files()


# The disk is full.


class Disk:
    """Counts what takes space or makes it safe, and refuses it once the disk is full."""

    def __init__(self, full_at: int, *, forever: bool) -> None:
        self.count, self.full_at, self.forever = 0, full_at, forever

    def use(self) -> None:
        self.count += 1
        if self.count == self.full_at or (self.forever and self.count > self.full_at):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def writing_to(disk: Disk) -> Iterator[None]:
    """Have new files, writes, fsyncs and renames counted, and refused by a full disk."""
    replace, fsync, opened = os.replace, os.fsync, Path.open

    def counted_replace(*arguments: object) -> None:
        disk.use()
        replace(*arguments)

    def counted_fsync(descriptor: int) -> None:
        disk.use()
        fsync(descriptor)

    def counted_open(path: Path, mode: str = "r", *more: object, **options: object) -> object:
        if mode[0] not in "xwa":
            return opened(path, mode, *more, **options)
        disk.use()
        file = opened(path, mode, *more, **options)
        write = file.write

        def counted_write(data: bytes) -> int:
            try:
                disk.use()
            except OSError:
                write(memoryview(data).cast("B")[: memoryview(data).nbytes // 2])  # what still fits
                raise
            return write(data)

        file.write = counted_write
        return file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", counted_replace)
        patch.setattr(os, "fsync", counted_fsync)
        patch.setattr(Path, "open", counted_open)
        yield


@pytest.mark.parametrize(
    "forever",
    [
        pytest.param(True, id="from then on"),
        pytest.param(False, id="only then", marks=pytest.mark.slow),
    ],
)
def test_a_disk_full_at_any_write_costs_nothing_that_was_there(
    forever: bool,
    undisturbed: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    run(DIGESTS[: CHUNK + 1])
    begun, messages = cache_folder(), []
    for number in range(1, 1000):
        monkeypatch.setenv("TOPWORK_CACHE", str(shutil.copytree(begun, tmp_path / str(number))))
        disk = Disk(number, forever=forever)
        try:
            with writing_to(disk):
                run()
        except CacheError as error:
            messages.append(str(error))
        if disk.count < number:
            break
        require_right(DIGESTS[: CHUNK + 1])
        lacking = [d for d in DIGESTS if any(d not in store for store in stores())]
        assert run().computed == len(lacking)
        require_right(DIGESTS)
        assert (files(), rubbish()) == (undisturbed, [])
    assert 20 < number < 999
    assert len(messages) > number / 2
    advice = "No space left on device; free some space, or set TOPWORK_CACHE"
    assert [message for message in messages if advice not in message] == []


def test_a_small_disk_is_filled_cleared_and_gone_on_from(
    topwork: Callable, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a real file system of 16 MB, by the command line."""
    data, disk, out = tmp_path / "data", tmp_path / "disk", tmp_path / "run"
    disk.mkdir()
    generator = np.random.default_rng(0)
    for number in range(160):
        folder = data / ("train" if number < 150 else "test") / ("dark", "light")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 128, (64, 64, 3), dtype=np.uint8) + 127 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.jpg")
    # Maps of 32 x 32 x 32 floats: 128 KiB an image, 20 MB of them.
    plan = tmp_path / "plan.json"
    Plan(str(backbone), phases=(Phase(frozen="act1", epochs=1, rate=1e-3),)).save(plan)
    command = ["fit", data, "--plan", plan, "--cache", "float32", "--runtime", "eager"]
    command += ["--out", out]
    monkeypatch.setenv("TOPWORK_CACHE", str(disk))
    monkeypatch.setattr(building, "SHARD_ROWS", 16)
    with mounted(disk, "16m"):
        result = topwork(*command)
        assert result.code == 2, result.err
        assert "No space left on device; free some space" in result.err.splitlines()[-1]
        assert not out.exists()
        whole = sorted((disk / "codes").iterdir())
        assert care.verify(whole) == []
        stored = sum(rows_of(path) for path in disk.rglob("*.safetensors"))
        assert stored > 60
        subprocess.run(["mount", "-o", "remount,size=80m", str(disk)], check=True)
        result = topwork(*command, "--json")
        assert result.code == 0, result.err
        assert json.loads(result.out)["cached_codes"]["computed"] == 160 - stored
        assert care.verify(whole) == []


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """Mount a file system of some size, in memory; skip the test where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


# Other processes, alive and dead; `test_trunk_claims.py` looks at claims themselves.


def test_where_no_claims_can_be_made_everything_is_computed(undisturbed: dict[str, str]) -> None:
    cache_folder().mkdir(parents=True)
    (cache_folder() / "claims").write_text("in the place of the folder", encoding="utf-8")
    assert run().computed == len(DIGESTS)
    assert files() == undisturbed


class Other(threading.Thread):
    """Another build of the same cache, which stops at its first image until it may go on."""

    def __init__(self, digests: Sequence[str]) -> None:
        super().__init__(daemon=True)
        self.digests, self.built, self.error = digests, Built(), None
        self.has_begun, self.may_go_on = threading.Event(), threading.Event()
        self.fails = False

    def run(self) -> None:
        try:
            self.built = run(self.digests, self.read)
        except ZeroDivisionError as error:
            self.error = error

    def read(self, digest: str) -> np.ndarray:
        self.has_begun.set()
        assert self.may_go_on.wait(20)
        if self.fails:
            raise ZeroDivisionError
        return pixels_of(digest)


def test_what_another_computes_is_waited_for_and_not_computed(undisturbed: dict[str, str]) -> None:
    other = Other(DIGESTS[:CHUNK])
    other.start()
    assert other.has_begun.wait(20)
    read = []

    def reading(digest: str) -> np.ndarray:
        read.append(digest)
        if len(read) == len(DIGESTS) - CHUNK:  # all else is done first
            other.may_go_on.set()
        return pixels_of(digest)

    mine = run(read=reading)
    other.join(20)
    assert (mine.computed, other.built.computed) == (len(DIGESTS) - CHUNK, CHUNK)
    assert set(read) == set(DIGESTS[CHUNK:])
    run()
    require_right(DIGESTS)
    assert (files(), rubbish()) == (undisturbed, [])


def test_what_another_gives_up_is_computed(undisturbed: dict[str, str]) -> None:
    other = Other(DIGESTS[:CHUNK])
    other.fails = True
    other.start()
    assert other.has_begun.wait(20)
    threading.Timer(0.2, other.may_go_on.set).start()
    assert run().computed == len(DIGESTS)
    other.join(20)
    assert isinstance(other.error, ZeroDivisionError)
    assert (files(), rubbish()) == (undisturbed, [])


def test_what_the_dead_have_claimed_is_taken_over(
    undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = stores()
    dead = Claims(cache_folder() / "claims")
    assert dead.take(building.name_of(opened, DIGESTS[CHUNK : 2 * CHUNK]))
    monkeypatch.setattr(claims, "STALE", 0.5)
    start = time.monotonic()
    assert run().computed == len(DIGESTS)
    assert time.monotonic() - start > 0.4
    assert (files(), rubbish()) == (undisturbed, [])


def test_what_others_cannot_read_does_not_keep_anybody_waiting() -> None:
    """A chunk with an unreadable image stays unfinished; each process finds that out for itself."""

    def reading(digest: str) -> np.ndarray | ImageError:
        return ImageError(digest, "broken") if digest == DIGESTS[1] else pixels_of(digest)

    for computed in (len(DIGESTS) - 1, 0):
        built = run(read=reading)
        assert (built.computed, list(built.unreadable)) == (computed, [DIGESTS[1]])
    require_right([digest for digest in DIGESTS if digest != DIGESTS[1]])


def test_what_another_merges_at_any_moment_disturbs_nobody(
    undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Between any look into a store's folder and what comes of it, all shards get other names."""
    for end in (CHUNK, 2 * CHUNK):
        run(DIGESTS[:end], merges=False)
    begun, listed = cache_folder(), cache.shard_names
    for number in range(1, 1000):
        monkeypatch.setenv("TOPWORK_CACHE", str(shutil.copytree(begun, tmp_path / str(number))))
        looks = 0

        def look(folder: Path, number: int = number) -> set[str]:
            nonlocal looks
            looks += 1
            names = listed(folder)
            if looks == number:
                for facts in FACTS:
                    open_store(facts).merge()
            return names

        with monkeypatch.context() as patch:
            patch.setattr(cache, "shard_names", look)
            built = run()
        if looks < number:
            break
        assert built.computed == len(DIGESTS) - 2 * CHUNK
        run()
        require_right(DIGESTS)
        assert (files(), rubbish()) == (undisturbed, [])
    assert 20 < number < 999


# Kills and crowds, by the benchmarks that print them.


def benchmark(name: str, *options: object) -> None:
    command = [sys.executable, BENCHMARKS / name, *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"


def test_kills_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    kill = importlib.import_module("kill_extract")
    alone = kill.Reference("rows", {"a": "1"}, count=600, seconds=1.0)
    most = kill.builds.MOST_LOST
    stop = kill.Stop(0.5, 100, [])
    assert kill.judged(alone, "rows", {"a": "1"}, most, [stop]) == []
    assert kill.judged(alone, "rows", {"a": "1"}, 2 * most, [stop, stop]) == []
    assert kill.judged(alone, "others", {"a": "1"}, 0, [stop]) == ["ROWS DIFFER"]
    assert kill.judged(alone, "rows", {"a": "2"}, 0, [stop]) == ["SHARDS DIFFER"]
    assert kill.judged(alone, "rows", {}, 0, [stop]) == ["SHARDS DIFFER"]
    assert kill.judged(alone, "rows", {"a": "1"}, most + 1, [stop]) == [f"MORE THAN {most} REDONE"]
    broken = kill.Stop(0.5, 100, ["a shard"])
    assert kill.judged(alone, "rows", {"a": "1"}, 0, [stop, broken]) == ["DAMAGED FILES"]


def test_a_few_kills_leave_what_an_extraction_left_alone_gives() -> None:
    benchmark("kill_extract.py", "--kills", 1, "--images", 100)


@pytest.mark.slow
def test_a_hundred_kills_leave_what_an_extraction_left_alone_gives() -> None:
    benchmark("kill_extract.py", "--kills", 100)


@pytest.mark.slow
def test_2_4_and_8_processes_fill_one_cache() -> None:
    benchmark("shared_cache.py", "--rounds", 2)
