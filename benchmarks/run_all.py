"""Run every benchmark in turn: its command, then what it prints; `make bench` calls this."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from places import options, require

SCRIPTS = (
    "reference_depths.py",
    "fit_speed.py",
    "first_fit.py",
    "rootstock.py",
    "frozen_cost.py",
    "peers.py",
    "plans.py",
    "finetune.py",
    "kill_resume.py",
    "decoding.py",
    "decoding_agreement.py",
    "runtimes.py",
    "extraction.py",
    "batches.py",
    "cache_rows.py",
    "cached_views.py",
    "kill_extract.py",
    "shared_cache.py",
    "memory.py",
    "heads.py",
    "intervals.py",
    "profile_speed.py",
    "similarity.py",
    "ranking.py",
    "depth_gains.py",
    "layerwise.py",
    "auxiliary.py",
)


def main() -> int:
    args = options(__doc__).parse_args()
    require(args.data, args.weights)
    folder = Path(__file__).parent
    failed = []
    for script in SCRIPTS:
        print(f"$ python benchmarks/{script}", flush=True)
        command = [sys.executable, folder / script, "--data", args.data, "--weights", args.weights]
        if subprocess.run(command).returncode:
            failed.append(script)
        print(flush=True)
    print(f"failed: {', '.join(failed)}" if failed else "all as wanted")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
