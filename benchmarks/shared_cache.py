"""Several processes fill one cache at once: the same rows, the same shards, little done twice.

2, 4 and 8 processes begin together with an empty cache, 10 rounds each; then 4 where file locks do
not work (none are used) and 4 where no claims can be made (there is a file in the folder's place),
so that all do all. Last, a process is killed while it holds a claim: another, that begins at that
moment, must take over what was claimed within 30 s.

    python benchmarks/shared_cache.py
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import builds
from builds import Build
from places import options

TAKEN_OVER = 30.0  # seconds after which a dead holder's claims count no more
LOOKED = 1.0  # and what it may take until that is noticed, beside the noise of the clock
WASTE = 0.25  # share of the images that may be computed twice where claims work


@dataclass(frozen=True)
class Outcome:
    """What several processes left.

    Attributes:
        rows: SHA-256 of the rows that each of them returned.
        shards: SHA-256 of each shard by name, after merging.
        reads: images that were read, by all processes together.
        seconds: wall time until the last was done, imports apart.
    """

    rows: frozenset[str]
    shards: dict[str, str]
    reads: int
    seconds: float


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="for each number of processes")
    parser.add_argument("--images", type=int, default=600, help="photos to extract")
    args = parser.parse_args()
    memory = builds.shared_memory()
    with tempfile.TemporaryDirectory() as folder:
        build = Build(Path(folder) / "photos", Path(folder) / "cache", Path(folder) / "report.json")
        builds.write_photos(build.photos, args.images)
        alone = together([build])
        print(f"one process: {alone.seconds:.2f} s; {args.images} photos\n")
        passed = [
            rounds(build, alone, count, args.rounds, label, claims=claims, locks=locks)
            for count, label, claims, locks in (
                (2, "", True, True),
                (4, "", True, True),
                (8, "", True, True),
                (4, ", file locks fail", True, False),
                (4, ", no claims can be made", False, True),
            )
        ]
        passed.append(taken_over(build, alone))
    more = builds.shared_memory() - memory
    print(f"left in /dev/shm: {sorted(more) or 'nothing'}")
    print("PASS" if all(passed) and not more else "FAIL")
    return 0 if all(passed) and not more else 1


def rounds(
    build: Build, alone: Outcome, count: int, times: int, label: str, *, claims: bool, locks: bool
) -> bool:
    """Run some processes at once, some times; print the outcome, and say whether it is well."""
    found = []
    for _ in range(times):
        several = [
            replace(build, report=build.report.with_suffix(f".{number}.json"), locks=locks)
            for number in range(count)
        ]
        for one in several:
            one.clear()
        if not claims:
            build.cache.mkdir()
            (build.cache / "claims").write_text("in the place of the folder", encoding="utf-8")
        found.append(together(several))
        if not is_equal(found[-1], alone):
            print(f"not equal: {how_unequal(found[-1], alone)}")
    equal = sum(is_equal(outcome, alone) for outcome in found)
    twice = [outcome.reads - alone.reads for outcome in found]
    limit = (WASTE if claims else count) * alone.reads
    print(
        f"{count} processes{label}: {equal} of {times} rounds equal; computed twice"
        f" {min(twice)} to {max(twice)} of {alone.reads} images (at most {limit:.0f} wanted);"
        f" {max(outcome.seconds for outcome in found):.2f} s at the most",
        flush=True,
    )
    return equal == times and max(twice) <= limit


def is_equal(found: Outcome, alone: Outcome) -> bool:
    """Say whether all processes returned, and together left, what one does."""
    return found.rows == alone.rows and found.shards == alone.shards


def how_unequal(found: Outcome, alone: Outcome) -> str:
    """Say what several processes returned or left otherwise than one does."""
    more, fewer = (
        found.shards.keys() - alone.shards.keys(),
        alone.shards.keys() - found.shards.keys(),
    )
    others = {
        name
        for name in found.shards.keys() & alone.shards
        if found.shards[name] != alone.shards[name]
    }
    rows = "the same" if found.rows == alone.rows else f"{len(found.rows)} kinds of"
    return f"{rows} rows; shards more {more}, fewer {fewer}, of other bytes {others}"


def together(several: list[Build]) -> Outcome:
    """Run builds of one cache to their end; they begin at the same moment."""
    gate = gate_of(several[0])
    processes = [replace(build, gate=gate).begin() for build in several]
    start = time.perf_counter()
    gate.touch()
    reports = [build.result(process) for build, process in zip(several, processes, strict=True)]
    seconds = time.perf_counter() - start
    cache = several[0].cache
    builds.merge(cache)
    rows = frozenset(report["rows"] for report in reports)
    return Outcome(rows, builds.shards_of(cache), sum(b.reads for b in several), seconds)


def gate_of(build: Build) -> Path:
    """Return the path of a file that is not there yet, for processes to wait for."""
    gate = build.report.with_name("gate")
    gate.unlink(missing_ok=True)
    return gate


def taken_over(build: Build, alone: Outcome) -> bool:
    """Kill a process that holds a claim, print how long another waits, and say if not too long."""
    gate = gate_of(build)
    heir = replace(build, report=build.report.with_suffix(".heir.json"), gate=gate)
    heir.clear()
    build.clear()
    waiting, process = heir.begin(), build.begin()
    while not any(build.cache.glob("claims/*.claim")) and process.is_alive():
        time.sleep(0.001)
    process.kill()
    process.join()
    start = time.perf_counter()
    claimed = len(list(build.cache.glob("claims/*.claim")))
    gate.touch()
    report = heir.result(waiting)
    total = time.perf_counter() - start
    waited = total - alone.seconds
    builds.merge(build.cache)
    same = {report["rows"]} == alone.rows and builds.shards_of(build.cache) == alone.shards
    print(
        f"killed while it held {claimed} claims: another had done all {total:.1f} s afterwards,"
        f" {waited:.1f} s later than alone (at most {TAKEN_OVER:.0f} wanted),"
        f" {'equal' if same else 'DIFFERENT'}"
    )
    return claimed > 0 and same and waited <= TAKEN_OVER + LOOKED


if __name__ == "__main__":
    sys.exit(main())
