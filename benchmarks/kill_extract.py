"""Kill extractions at random moments and go on: the cache is that of an extraction left alone.

A few hundred small photos go through a tiny network into two stores. Once that is left alone; then
again and again it is begun with an empty cache, gets SIGKILL at a moment drawn evenly from its
extraction, in half of the trials a second time when it goes on, and is brought to its end. A trial
that has ended before its first kill is drawn again. The claims of the dead are made old, as they
would be 30 s later. What a kill leaves must be whole; and in the end all shards must have the same
names and bytes, all rows the same values, and no more may have been computed twice than one shard
and what threads are given ahead, for each kill.

    python benchmarks/kill_extract.py --kills 100
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import builds
from builds import Build
from places import options
from topwork.trunk.limit import LEFTOVERS

PRUNED = set(LEFTOVERS)  # of dead processes, which `topwork cache prune` removes


@dataclass(frozen=True)
class Reference:
    """What an extraction left alone gives.

    Attributes:
        rows: SHA-256 of all rows.
        shards: SHA-256 of each shard by name.
        count: images.
        seconds: that the extraction took.
    """

    rows: str
    shards: dict[str, str]
    count: int
    seconds: float


@dataclass(frozen=True)
class Stop:
    """A kill.

    Attributes:
        seconds: after the extraction began.
        reads: how many images had been read by then.
        damaged: files that were not whole afterwards.
    """

    seconds: float
    reads: int
    damaged: list[str]


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--kills", type=int, default=100, help="trials")
    parser.add_argument("--images", type=int, default=600, help="photos to extract")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    memory = builds.shared_memory()
    with tempfile.TemporaryDirectory() as folder:
        build = Build(Path(folder) / "photos", Path(folder) / "cache", Path(folder) / "report.json")
        builds.write_photos(build.photos, args.images)
        reference = left_alone(build, args.images)
        print(f"left alone: {reference.seconds:.2f} s, {len(reference.shards)} shards in the end;")
        print("moments in seconds after the extraction began, with the images read by then\n")
        chance = random.Random(args.seed)
        left: Counter[str] = Counter()
        passed = []
        for number in range(1, args.kills + 1):
            passed.append(trial(build, reference, number, chance))
            left += builds.leftovers(build.cache)
    more = builds.shared_memory() - memory
    print(f"\nas if left alone: {sum(passed)} of {len(passed)}")
    print(f"left in the caches of all trials, besides shards: {dict(left) or 'nothing'}")
    print(f"left in /dev/shm: {sorted(more) or 'nothing'}")
    return 0 if all(passed) and not more and set(left) <= PRUNED else 1


def left_alone(build: Build, count: int) -> Reference:
    """Extract twice without interruption; leave if the two differ: nothing can be compared then."""
    found = []
    for _ in range(2):
        build.clear()
        report = build.result(build.begin())
        builds.merge(build.cache)
        shards = builds.shards_of(build.cache)
        found.append(Reference(report["rows"], shards, count, report["seconds"]))
        if not (report["computed"] == build.reads == count and shards):
            sys.exit(f"{build.reads} read and {report['computed']} computed of {count} images")
    first, second = found
    if (first.rows, first.shards) != (second.rows, second.shards):
        sys.exit("two extractions left alone differ, so that nothing can be compared")
    return second


def trial(build: Build, reference: Reference, number: int, chance: random.Random) -> bool:
    """Kill and go on, print what came of it, and say whether it is as it should be."""
    stops: list[Stop] = []
    while not stops:
        build.clear()
        stops = killed(build, reference, chance)
    report = build.result(build.begin())
    redone = build.reads - reference.count
    builds.merge(build.cache)
    shards = builds.shards_of(build.cache)
    faults = judged(reference, report["rows"], shards, redone, stops)
    moments = ", ".join(f"{stop.seconds:.2f} ({stop.reads})" for stop in stops)
    verdict = "; ".join(faults) or "equal"
    print(f"{number:3} killed at {moments:24} redone {redone:3}  {verdict}", flush=True)
    return not faults


def judged(
    reference: Reference, rows: str, shards: dict[str, str], redone: int, stops: list[Stop]
) -> list[str]:
    """Return what is not as it should be."""
    allowed = len(stops) * builds.MOST_LOST
    wanted = {
        "ROWS DIFFER": rows == reference.rows,
        "SHARDS DIFFER": shards == reference.shards,
        f"MORE THAN {allowed} REDONE": redone <= allowed,
        "DAMAGED FILES": not any(stop.damaged for stop in stops),
    }
    return [fault for fault, is_well in wanted.items() if not is_well]


def killed(build: Build, reference: Reference, chance: random.Random) -> list[Stop]:
    """Begin an extraction and kill it once or twice; the kills before its end are returned."""
    stops: list[Stop] = []
    seconds_left = reference.seconds
    for _ in range(chance.choice((1, 2))):
        moment = chance.uniform(0, seconds_left)
        process = build.begin()
        time.sleep(moment)
        if build.report.exists():
            process.join()
            break
        process.kill()
        process.join()
        stops.append(Stop(moment, build.reads, builds.damaged(build.cache)))
        builds.let_claims_grow_old(build.cache)
        seconds_left -= moment
    return stops


if __name__ == "__main__":
    sys.exit(main())
