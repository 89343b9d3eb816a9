"""How long a fit takes where nothing is said but where the photos are, and nothing is cached.

`topwork fit hymenoptera`: the backbone that comes along, a plan found by measuring, a report. Each
round is a whole process with an empty cache, imports included, timed by the wall clock.

    python benchmarks/first_fit.py
"""

from __future__ import annotations

import os
import sys
import tempfile
from statistics import median

from fit_speed import timed
from places import options, require

WANTED = 60.0  # seconds


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    data = args.data / "hymenoptera"
    require(data)
    if sys.dont_write_bytecode:
        sys.exit("PYTHONDONTWRITEBYTECODE is set; unset it, or imports are compiled in each round")
    seconds = []
    for number in range(1, args.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            fit = ["-m", "topwork", "fit", str(data), "--json", "--out", f"{folder}/run"]
            found = timed(fit, f"{folder}/cache")
        seconds.append(found.seconds)
        print(
            f"round {number}: {found.seconds:.1f} s, accuracy {found.accuracy:.3f}"
            f" (load {os.getloadavg()[0]:.1f})",
            flush=True,
        )
    passed = median(seconds) < WANTED
    print(f"median {median(seconds):.1f} s; wanted under {WANTED:.0f} s: ", end="")
    print("PASS" if passed else "FAIL")
    return not passed


if __name__ == "__main__":
    sys.exit(main())
