"""Warming up the head and then fine-tuning all, against the features alone: six sets, three seeds.

Both are named plans with their own settings, on the same manifests, which depend on the seed where
the data brings no split of its own. The difference is taken image by image over the seeds; its
interval comes from drawing test images anew. Runs that are there already are not repeated.
Each run's calibration error is printed too, and the epoch that was kept.

    python benchmarks/finetune.py
    python benchmarks/finetune.py --only sign_digits --seeds 1
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

import sets
from places import options, require

PLANS = ("features", "warmup")
SETS = ("hymenoptera", "flowers12", "neu_steel", "sign_digits", "wbc", "pacs")
SIZE = "128"  # pixels
# Images per class to train on, to keep within a quarter of an hour on two cores.
TRAIN = {"hymenoptera": 120, "flowers12": 20, "sign_digits": 40, "wbc": 60, "pacs": 25}
TEST = 60
DRAWS = 10_000


def main() -> int:
    parser = options(__doc__)
    place = Path(tempfile.gettempdir()) / "topwork-finetune"
    parser.add_argument(
        "--out", type=Path, default=place, help=f"folder for manifests and runs; {place}"
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--only", choices=SETS, nargs="+", default=SETS, help="these sets")
    parser.add_argument("--network", default="mobilenetv2_100", help="folder among the weights")
    args = parser.parse_args()
    require(args.data, args.weights)
    lines = [
        "| set | images | features | warm-up, then fine-tuned | difference | 95 % interval |",
        "|---|---|---|---|---|---|",
    ]
    failures = []
    for name in args.only:
        right = [[run(name, seed, plan, args) for plan in PLANS] for seed in range(args.seeds)]
        difference, low, high = paired(right)
        features, tuned = (mean([pair[i] for pair in right]) for i in (0, 1))
        lines.append(
            f"| {name} | {sum(len(pair[0]) for pair in right)} | {features:.3f} | {tuned:.3f}"
            f" | {100 * difference:+.1f} | {100 * low:+.1f} to {100 * high:+.1f} |"
        )
        print(lines[-1], flush=True)
        if high < 0 or (name in ("sign_digits", "wbc") and low <= 0):
            failures.append(name)
    (args.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("FAIL: " + ", ".join(failures) if failures else "PASS")
    return bool(failures)


def run(name: str, seed: int, plan: str, args: argparse.Namespace) -> dict[str, bool]:
    """Fit a plan, unless it has been; return for each test image whether it was right."""
    folder = args.out / f"{name}-{seed}"
    out = folder / plan
    if not (out / "record.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        data = sets.write_set(name, args.data, folder, seed, train=TRAIN.get(name), test=TEST)
        command = [sys.executable, "-m", "topwork", "fit", str(data), "--plan", plan]
        command += ["--backbone", str(args.weights / args.network), "--size", SIZE]
        command += ["--seed", str(seed), "--out", str(out), "--resume"]
        subprocess.run(
            command,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=(folder / f"{plan}.log").open("w"),
        )
    record = json.loads((out / "record.json").read_text(encoding="utf-8"))
    text = f"  {name} {seed} {plan}: {record['value']:.3f}, calibration error"
    text += f" {record['test']['calibration_error']['value']:.3f}"
    for phase in (phase for phase in record["phases"] if phase.get("best")):
        text += f", epoch {phase['best']['epoch']}{'' if phase['improved'] else ' not'} kept"
    print(f"{text}, {record['seconds']:.0f} s", flush=True)
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return {row["name"]: row["label"] == row["predicted"] for row in csv.DictReader(file)}


def mean(runs: list[dict[str, bool]]) -> float:
    """Return the share that is right, over all images of all seeds."""
    return float(np.mean([value for right in runs for value in right.values()]))


def paired(right: list[list[dict[str, bool]]]) -> tuple[float, float, float]:
    """Return the mean difference in accuracy and its 95 % interval.

    An image that is tested under several seeds is drawn as one.
    """
    gains: dict[str, list[int]] = defaultdict(list)
    for features, tuned in right:
        for image in features:
            gains[image].append(int(tuned[image]) - int(features[image]))
    sums = np.array([sum(values) for values in gains.values()], dtype=float)
    counts = np.array([len(values) for values in gains.values()], dtype=float)
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, len(sums), size=(DRAWS, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(sums.sum() / counts.sum()), float(low), float(high)


if __name__ == "__main__":
    sys.exit(main())
