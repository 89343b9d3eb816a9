"""How long a fit takes: the plain way, topwork's first fit, and its second with a warm cache.

Each job is a whole process, imports included, timed by the wall clock. The jobs take turns, so
that a machine that grows slower meanwhile is unfair to none; a ratio compares jobs of one round.
The cache is empty in each round's first fit. A round before the others fills the file cache and
writes the bytecode; it is not counted.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

from places import options, require

PLAIN, COLD, WARM = "plain way", "topwork, empty cache", "topwork, warm cache"
WANTED = {COLD: 1.8, WARM: 2.5}
PACKAGES = ("topwork", "torch", "torchvision", "timm", "scikit-learn", "numpy", "pillow")


@dataclass(frozen=True)
class Timed:
    """One finished job: wall-clock seconds, and its accuracy on the test part."""

    seconds: float
    accuracy: float


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    args = parser.parse_args()
    data, model = args.data / "hymenoptera", args.weights / "mobilenetv2_100"
    require(data, model)
    if sys.dont_write_bytecode:
        sys.exit("PYTHONDONTWRITEBYTECODE is set; unset it, or imports are compiled in each job")

    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(", ".join(f"{name} {version(name)}" for name in PACKAGES))
    one_round(data, model)
    rounds = []
    for number in range(1, args.rounds + 1):
        rounds.append(one_round(data, model))
        seconds = ", ".join(f"{name} {job.seconds:.2f} s" for name, job in rounds[-1].items())
        print(f"round {number}: {seconds} (load {os.getloadavg()[0]:.1f})", flush=True)
    return summary(rounds)


def one_round(data: Path, model: Path) -> dict[str, Timed]:
    """Run each job once, with a cache and run folders of this round's own."""
    script = Path(__file__).with_name("plain_features.py")
    with tempfile.TemporaryDirectory() as folder:
        cache = f"{folder}/cache"
        fit = ["-m", "topwork", "fit", str(data), "--plan", "features"]
        fit += ["--backbone", str(model), "--json", "--out"]
        return {
            PLAIN: timed([str(script), str(data), str(model)], cache),
            COLD: timed([*fit, f"{folder}/first"], cache),
            WARM: timed([*fit, f"{folder}/second"], cache),
        }


def timed(arguments: list[str], cache: str) -> Timed:
    """Run Python with some arguments in a process of its own; leave if it fails."""
    environment = os.environ | {"TOPWORK_CACHE": cache}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return Timed(seconds, accuracy_in(done.stdout))


def accuracy_in(output: str) -> float:
    """Return the accuracy in a job's output: topwork's JSON, or the plain script's one line."""
    if output.startswith("{"):
        return float(json.loads(output)["accuracy"])
    return float(output.split()[-1])


def summary(rounds: list[dict[str, Timed]]) -> int:
    """Print medians and ratios; return 0 if the ratios are as wanted, else 1."""
    print(f"\n{'job':22}{'median s':>10}{'accuracy':>10}   as fast as the plain way")
    passed = True
    for name in (PLAIN, COLD, WARM):
        seconds = median(jobs[name].seconds for jobs in rounds)
        line = f"{name:22}{seconds:10.2f}{rounds[0][name].accuracy:10.3f}"
        if name in WANTED:
            ratios = [jobs[PLAIN].seconds / jobs[name].seconds for jobs in rounds]
            ratio = median(ratios)
            passed = passed and ratio >= WANTED[name]
            line += f"   {ratio:.2f}x ({min(ratios):.2f} to {max(ratios):.2f}),"
            line += f" wanted {WANTED[name]}x: {'PASS' if ratio >= WANTED[name] else 'FAIL'}"
        print(line)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
