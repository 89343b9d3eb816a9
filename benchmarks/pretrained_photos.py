"""Small photos, most of them without labels: what pretraining gains, by method.

The third of CIFAR-10 of ../shared, 32 pixels, ResNet-20. Each method pretrains once on the training
photos, none of them labeled for it, for at most half an hour on two cores (the epochs are fixed, so
that the weights do not depend on the machine). Then 17 labels a class are drawn (1 %), and 167
(10 %), three times, and two plans learn from them: a linear probe on frozen codes at L, and that
head followed by training all layers at a small rate. Beside them the same two on random weights,
and training from scratch, which gets four times the epochs. All see the same views (random crops,
mirrored or not) and are tested on the same photos. The gain over scratch is paired by draw, its
interval Student's t over the draws.

What was done is kept in OUT and not done again; an interrupted pretraining goes on where it was.

    python benchmarks/pretrained_photos.py --out photos-figure
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import topwork
from auxiliary import few_labels, interval, rows_of
from backbones import digest, made
from places import options, require
from topwork.data.items import open_images
from topwork.named_plans import named_plan
from topwork.network.zoo import find_backbone
from topwork.plan import Augment, Plan

NETWORK, SIZE = "topwork:cifar_resnet20", (32, 32)
COUNTS = {"1 %": 17, "10 %": 167}  # labels a class
DRAWS = 3
VIEWS = 8
PRECISION = "bfloat16"  # of pretraining: about twice as fast on processors that have it
AUGMENT = Augment(0.5, True)
RECIPES: dict[str, dict[str, Any]] = {
    "contrastive": {"phase": {"epochs": 36, "precision": PRECISION}},
    "rotation": {"phase": {"epochs": 36, "precision": PRECISION}},
    "masked": {"phase": {"epochs": 60, "precision": PRECISION}},
    "gan": {"phase": {"epochs": 30, "precision": PRECISION}},
    "autoencoder": {"end_to_end": True, "phase": {"epochs": 50, "precision": PRECISION}},
}
SCRATCH, RANDOM = "scratch", "random"
PROBE, TUNED = "features", "warmup"
EPOCHS = {SCRATCH: 80, TUNED: 20}
WANTED = 0.08  # of the best over scratch, at 1 %


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for all results")
    parser.add_argument("--method", action="append", choices=RECIPES, help="this one only")
    parser.add_argument("--draws", type=int, default=DRAWS, help="of labels")
    args = parser.parse_args()
    require(args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TOPWORK_CACHE", str(args.out / "cache"))
    log = args.out / "rows.jsonl"
    photos = args.data / "cifar10_third_jpg.zip"
    chosen = args.method or list(RECIPES)
    for label, count in COUNTS.items():
        for start in (SCRATCH, RANDOM, *chosen):
            if start in RECIPES:
                made(args.out / start, photos, start, RECIPES[start], backbone=NETWORK)
            for draw in range(args.draws):
                for way in (SCRATCH,) if start == SCRATCH else (PROBE, TUNED):
                    fit_once(start, way, label, count, draw, photos, args.out, log)
    rows = rows_of(log)
    compared = [(start, way) for start in (RANDOM, *chosen) for way in (PROBE, TUNED)]
    print(table(rows, compared, args.draws, args.out))
    best = max(gain(rows, start, way, "1 %", args.draws)[0] for start, way in compared)
    print(f"best gain over scratch at 1 %: {100 * best:+.1f} points; wanted {100 * WANTED:+.0f}")
    return 0 if best >= WANTED else 1


def fit_once(
    start: str, way: str, label: str, count: int, draw: int, photos: Path, out: Path, log: Path
) -> None:
    """Fit a plan to a draw of labels, unless the log has it, and append a row."""
    key = {"start": start, "way": way, "labels": label, "draw": draw}
    key["settings"] = settings_of(start, way)
    if any(key.items() <= row.items() for row in rows_of(log)):
        return
    name = str(out / start) if start in RECIPES else NETWORK
    with tempfile.TemporaryDirectory() as folder:
        record = topwork.fit(
            few_labels(open_images(photos), count, draw),
            Path(folder) / "run",
            plan=plan_of(name, way, start),
            backbone=find_backbone(name),
            seed=draw,
        )
    row = key | {"value": record["value"], "n": record["n"], "seconds": record["seconds"]}
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{start}, {label}, draw {draw}, {way}: {row['value']:.3f}", flush=True)


def plan_of(name: str, way: str, start: str) -> Plan:
    """Return the plan of a way; all labels are learned from, none are held out to choose by."""
    plan = named_plan(way, name, epochs=EPOCHS.get(way), views=VIEWS, input_size=SIZE)
    phases = tuple(replace(phase, stop=None) for phase in plan.phases)
    random: dict[str, Any] = {"reused": "0", "frozen_random": True} if start == RANDOM else {}
    return replace(plan, phases=phases, augment=AUGMENT, **random)


def settings_of(start: str, way: str) -> str:
    """Return what tells the settings of a row from others."""
    return digest(RECIPES.get(start), EPOCHS.get(way), VIEWS, AUGMENT)


def values(rows: Sequence[dict], start: str, way: str, label: str, draws: int) -> np.ndarray:
    """Return accuracies, draw by draw."""
    wanted = {"start": start, "way": way, "labels": label, "settings": settings_of(start, way)}
    found = {row["draw"]: row["value"] for row in rows if wanted.items() <= row.items()}
    return np.array([found[draw] for draw in range(draws)])


def gain(rows: Sequence[dict], start: str, way: str, label: str, draws: int) -> tuple[float, float]:
    """Return the mean gain over scratch, and half of its interval."""
    own = values(rows, start, way, label, draws)
    return interval(own - values(rows, SCRATCH, SCRATCH, label, draws))


def table(rows: Sequence[dict], compared: list[tuple[str, str]], draws: int, out: Path) -> str:
    """Return accuracies and gains of starts and ways."""
    lines = ["| start | plan | 1 % | gain | 10 % | gain | minutes of pretraining |"]
    lines.append("|---|---|---|---|---|---|---|")
    plain = [f"{values(rows, SCRATCH, SCRATCH, label, draws).mean():.3f} | " for label in COUNTS]
    lines.append(f"| scratch | all layers | {' | '.join(plain)} | 0 |")
    for start, way in compared:
        cells = []
        for label in COUNTS:
            mean, half = gain(rows, start, way, label, draws)
            cells.append(f"{values(rows, start, way, label, draws).mean():.3f}")
            cells.append(f"{100 * mean:+.1f} ({100 * (mean - half):+.1f} to"
                         f" {100 * (mean + half):+.1f})")  # fmt: skip
        minutes = 0.0
        if start in RECIPES:
            record = json.loads((out / start / "record.json").read_text(encoding="utf-8"))
            minutes = record["training_seconds"] / 60
        plan = {PROBE: "linear probe", TUNED: "fine-tuned"}[way]
        lines.append(f"| {start} | {plan} | {' | '.join(cells)} | {minutes:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
