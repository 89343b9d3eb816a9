"""What the profile costs: its pass over the images, and all of it from folder to picture.

The pass collects pooled outputs at every cut point; it is held against extracting those at the top
alone, by the same runtime, in one process, imports apart. Both have an empty cache each time, but
for the trunk that an earlier use has compiled; they take turns, and a ratio compares those of one
round.

All of it is a process of `topwork profile` on hymenoptera with MobileNetV2, imports included, from
the folder of photos to table and picture: once with an empty cache but for the compiled trunk that
a profile of other images has left, and once more with what the first has cached. A round before
the others writes the bytecode; it is not counted.

    python benchmarks/profile_speed.py
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch

from extraction import PACKAGES, cache_at
from places import options, require
from topwork.advice.depth_codes import pool_at
from topwork.data.items import open_images
from topwork.network.loading import load_backbone
from topwork.network.zoo import find_backbone
from topwork.plan import Plan
from topwork.trunk.execution import Execution
from topwork.trunk.extraction import Extractor, choose_runner, extract, prepare

NETWORKS = ("mobilenetv2_100", "vit_tiny_patch16_224")
WANTED_RATIO = 1.15
WANTED_SECONDS = {"cold": 15.0, "warm": 6.0}
OTHERS = "flowers12"  # the images that an earlier use was about


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="that count")
    parser.add_argument("--images", type=int, help="as many only, for a trial")
    args = parser.parse_args()
    require(args.data / "hymenoptera", args.data / OTHERS, *(args.weights / n for n in NETWORKS))
    if sys.dont_write_bytecode:
        sys.exit("PYTHONDONTWRITEBYTECODE is set; unset it, or imports are compiled in each job")
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(", ".join(f"{name} {version(name)}" for name in PACKAGES))
    passed = True
    for network in NETWORKS:
        bench = Bench(args.weights / network, args.data / "hymenoptera", args.images)
        passed &= the_pass(bench, network, args.rounds)
    passed &= all_of_it(args.data, args.weights / NETWORKS[0], args.rounds)
    print("\nPASS" if passed else "\nFAIL")
    return not passed


@dataclass(frozen=True)
class Pass:
    """One pass over the images: its seconds and what ran the network."""

    seconds: float
    runtime: str


class Bench:
    """One network and its images, and a pass to the top alone or to every depth."""

    def __init__(self, source: Path, data: Path, most: int | None) -> None:
        plan = Plan(str(source))
        self.loaded = load_backbone(find_backbone(str(source)), plan)
        self.images = open_images(data)
        self.indices = range(len(self.images.items))[:most]
        self.digests = [sha256(self.images.read(index)).hexdigest() for index in self.indices]
        chain = self.loaded.chain
        self.depths = {"top": chain.cuts[-1:], "every depth": chain.cuts[1:]}
        self.kept = tempfile.TemporaryDirectory()
        with cache_at(Path(self.kept.name)):
            for which in self.depths:
                self.extract(which, "onnxruntime", 2)  # leaves a compiled trunk
            chosen = choose_runner(self.extractor("top", "auto"), len(self.indices))
            self.runtime = chosen.runtime.name

    def extractor(self, which: str, runtime: str) -> Extractor:
        """Make the trunk ready."""
        chain, cuts = self.loaded.chain, self.depths[which]
        return prepare(
            chain,
            [cut.name for cut in cuts],
            [pool_at(chain, cut) for cut in cuts],
            self.loaded.backbone.preprocessing,
            Execution(torch.device("cpu"), runtime),
        )

    def extract(self, which: str, runtime: str, count: int | None = None) -> str:
        """Get the codes of the images, or of the first few; return what ran the network."""
        extractor = self.extractor(which, runtime)
        found = extract(extractor, self.images, self.indices[:count], self.digests[:count])
        return found.runtime

    def run(self, which: str) -> Pass:
        """Get the codes, the cache being empty but for the compiled trunks."""
        with tempfile.TemporaryDirectory() as folder, cache_at(Path(folder)):
            if (Path(self.kept.name) / "trunks").is_dir():
                shutil.copytree(Path(self.kept.name) / "trunks", Path(folder) / "trunks")
            start = time.perf_counter()
            runtime = self.extract(which, self.runtime)
            return Pass(time.perf_counter() - start, runtime)


def the_pass(bench: Bench, network: str, count: int) -> bool:
    """Compare the pass to every depth with that to the top; say whether it is as wanted."""
    print(f"\n{network}, {len(bench.indices)} photos, {len(bench.depths['every depth'])} depths")
    rounds = []
    for number in range(count):
        order = list(bench.depths) if number % 2 else list(bench.depths)[::-1]
        rounds.append({which: bench.run(which) for which in order})
        said = ", ".join(f"{which} {rounds[-1][which].seconds:.2f} s" for which in bench.depths)
        print(f"  round {number + 1}: {said} (load {os.getloadavg()[0]:.1f})", flush=True)
    ratios = [found["every depth"].seconds / found["top"].seconds for found in rounds]
    runtimes = {done.runtime for found in rounds for done in found.values()}
    passed = median(ratios) <= WANTED_RATIO and len(runtimes) == 1
    print(
        f"  every depth to the top alone, by {' and '.join(sorted(runtimes))}:"
        f" {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), wanted at most"
        f" {WANTED_RATIO}: {'PASS' if passed else 'FAIL'}"
    )
    return passed


def all_of_it(data: Path, source: Path, count: int) -> bool:
    """Time whole processes of `topwork profile`; say whether they are as quick as wanted."""
    print(f"\ntopwork profile, {source.name}, hymenoptera, from folder to picture")
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "kept"
        profile(data / OTHERS, source, kept)
        trunks = kept / "trunks"
        names = sorted(path.name for path in trunks.iterdir()) if trunks.is_dir() else []
        print(f"  compiled trunks that a profile of {OTHERS} has left: {len(names)}")
        rounds = [one_round(data / "hymenoptera", source, kept) for _ in range(count + 1)][1:]
    passed = True
    for name, wanted in WANTED_SECONDS.items():
        seconds = [found[name] for found in rounds]
        as_wanted = median(seconds) <= wanted
        passed &= as_wanted
        print(
            f"  {name}: {median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), wanted"
            f" at most {wanted:.0f}: {'PASS' if as_wanted else 'FAIL'}"
        )
    return passed


def one_round(data: Path, source: Path, kept: Path) -> dict[str, float]:
    """Return the seconds of a first profile and of a second with what that has cached."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        if (kept / "trunks").is_dir():
            shutil.copytree(kept / "trunks", cache / "trunks")
        found = {name: profile(data, source, cache) for name in WANTED_SECONDS}
    said = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in found.items())
    print(f"  {said} (load {os.getloadavg()[0]:.1f})", flush=True)
    return found


def profile(data: Path, source: Path, cache: Path) -> float:
    """Run `topwork profile` in a process of its own and return its seconds; leave if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "profile.png"
        command = ["-m", "topwork", "profile", data, "--backbone", source, "--out", picture]
        environment = os.environ | {"TOPWORK_CACHE": str(cache)}
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *map(str, command)], capture_output=True, text=True, env=environment
        )
        seconds = time.perf_counter() - start
        if done.returncode or not picture.is_file():
            sys.exit(f"topwork profile {data} failed:\n{done.stderr}")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
