"""MNIST with few labels, the rest unlabeled: the error with and without each way of pretraining.

Of the 60,000 training images 100, 1,000 or 10,000 have labels, as many of each class, drawn five
times; all of them, unlabeled, are pretrained on once by each method. Dense layers
(784-500-500-2000) take Boltzmann machines and denoising autoencoders, which know nothing of
geometry; a small ConvNet takes the others. The same network is trained from random weights on the
same labels, with as many epochs at the same rate; pretrained ones get the head first, solved on
frozen codes. Errors are those of the shipped models on 2,000 of the test images, always the same.

What was done is kept in OUT and not done again.

    python benchmarks/mnist_labels.py --out labels-figure
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import topwork
from auxiliary import digits, few_labels, interval, rows_of
from backbones import digest, made
from mnist import ARGUMENTS
from places import options, require
from topwork.network.zoo import Backbone, find_backbone
from topwork.phase import Phase
from topwork.plan import Plan

COUNTS = (100, 1_000, 10_000)
DRAWS = 5
EPOCHS = {100: 60, 1_000: 40, 10_000: 15}
DENSE, CONV = "topwork:dense", "topwork:small_convnet"
RATES = {DENSE: 1e-3, CONV: 3e-3}  # of all layers, from random weights and from pretrained ones
NONE = "none"
WANTED = 0.4  # of the error at 1,000 labels that the best method takes off
JUDGED = 1_000


@dataclass(frozen=True)
class Method:
    """A way of pretraining: the network, and changes to the method's recipe."""

    backbone: str
    recipe: dict[str, Any] = field(default_factory=dict)


METHODS = {
    "rbm": Method(DENSE, {"arguments": ARGUMENTS, "phase": {"epochs": 8}}),
    "autoencoder": Method(DENSE, {"arguments": ARGUMENTS, "phase": {"epochs": 8}}),
    "contrastive": Method(CONV, {"phase": {"epochs": 6}, "flip": False}),  # digits are not mirrored
    "rotation": Method(CONV, {"phase": {"epochs": 3}, "flip": False}),
    "masked": Method(CONV, {"phase": {"epochs": 6}}),
    "gan": Method(CONV, {"phase": {"epochs": 4}}),
}
SIZE = (28, 28)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for all results")
    parser.add_argument("--method", action="append", choices=METHODS, help="this one only")
    parser.add_argument("--draws", type=int, default=DRAWS, help="of labels")
    parser.add_argument("--labels", type=int, action="append", help="so many only")
    args = parser.parse_args()
    require(args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TOPWORK_CACHE", str(args.out / "cache"))
    log = args.out / "rows.jsonl"
    archive = args.data / "mnist.npz"
    methods = {name: METHODS[name] for name in args.method or METHODS}
    for name, method in methods.items():
        made(args.out / name, archive, name, method.recipe, backbone=method.backbone, size=SIZE)
        for count in args.labels or COUNTS:
            for draw in range(args.draws):
                for start in (NONE, name):
                    fit_once(start, method.backbone, count, draw, archive, args.out, log)
    rows = rows_of(log)
    print(table(rows, methods, args.labels or COUNTS, args.draws))
    if JUDGED not in (args.labels or COUNTS):
        return 0
    best = max(taken_off(rows, name, m.backbone, JUDGED, args.draws) for name, m in methods.items())
    print(f"the best takes off {100 * best:.0f} % of the error at {JUDGED} labels")
    return 0 if best >= WANTED else 1


def fit_once(
    start: str, network: str, count: int, draw: int, archive: Path, out: Path, log: Path
) -> None:
    """Fit a draw of labels, unless the log has it, and append a row."""
    key = {
        **{"start": start, "network": network, "labels": count, "draw": draw},
        "settings": settings_of(start, network, count),
    }
    if any(key.items() <= row.items() for row in rows_of(log)):
        return
    images = digits(archive)
    backbone = find_backbone(network if start == NONE else str(out / start))
    if start == NONE and network == DENSE:
        spec = replace(backbone.spec, arguments={**backbone.spec.arguments, **ARGUMENTS})
        backbone = replace(backbone, spec=spec)
    with tempfile.TemporaryDirectory() as folder:
        record = topwork.fit(
            few_labels(images, count // len(images.classes), draw),
            Path(folder) / "run",
            plan=plan_of(start, backbone, network, count),
            backbone=backbone,
            seed=draw,
        )
    row = key | {"value": record["value"], "n": record["n"], "seconds": record["seconds"]}
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{network}, {count} labels, draw {draw}, {start}: {row['value']:.4f}", flush=True)


def settings_of(start: str, network: str, count: int) -> str:
    """Return what tells the settings of a row from others."""
    recipe = METHODS[start].recipe if start in METHODS else ARGUMENTS
    return digest(recipe, EPOCHS[count], RATES[network])


def plan_of(start: str, backbone: Backbone, network: str, count: int) -> Plan:
    """Return the plan: all layers are trained; after pretraining the head is solved first."""
    trained = Phase(
        frozen="input",
        epochs=EPOCHS[count],
        batch=min(100, count // 5),
        rate=RATES[network],
        reused_rate=1.0,
        warmup=1,
        batch_norm="batch",
    )
    if start == NONE:
        return Plan(backbone.name, reused="0", phases=(trained,), input_size=SIZE)
    return Plan(backbone.name, phases=(Phase(), trained), input_size=SIZE)


def errors(rows: Sequence[dict], start: str, network: str, count: int, draws: int) -> np.ndarray:
    """Return the errors, draw by draw."""
    settings = settings_of(start, network, count)
    wanted = {"start": start, "network": network, "labels": count, "settings": settings}
    found = {row["draw"]: 1 - row["value"] for row in rows if wanted.items() <= row.items()}
    return np.array([found[draw] for draw in range(draws)])


def taken_off(rows: Sequence[dict], name: str, network: str, count: int, draws: int) -> float:
    """Return by which share a method lowers the mean error."""
    before = errors(rows, NONE, network, count, draws).mean()
    return float(1 - errors(rows, name, network, count, draws).mean() / before)


def table(
    rows: Sequence[dict], methods: dict[str, Method], counts: Sequence[int], draws: int
) -> str:
    """Return errors in percent without and with each method, and the difference."""
    lines = [
        "| method | network | " + " | ".join(f"{count} labels" for count in counts) + " |",
        "|---|---|" + "---|" * len(counts),
    ]
    for name, method in methods.items():
        cells = []
        for count in counts:
            before = errors(rows, NONE, method.backbone, count, draws)
            after = errors(rows, name, method.backbone, count, draws)
            mean, half = interval(100 * (before - after))
            cells.append(
                f"{100 * before.mean():.1f} to {100 * after.mean():.1f} ({mean - half:+.1f} to"
                f" {mean + half:+.1f} taken off)"
            )
        lines.append(f"| {name} | {method.backbone} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
