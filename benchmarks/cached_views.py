"""Augmentation with caching: K cached views of each image, against a new view in each epoch.

MobileNetV2 at 128 pixels on few labels, reused in three ways: a head on frozen features, solved to
its optimum on all K views of every image; the same head trained by gradient descent, the K views
taken in turn from epoch to epoch; and the last stage trained with it. Live augmentation has as many
views as epochs, so that nothing that the trunk gives is used twice; a solved head is compared with
a head that is trained so. Each fit begins with an empty cache, and its seconds are those of running
the trunk and of fitting; scoring on the test part is left out. A seed draws the training images,
and all that is drawn in a fit.

    python benchmarks/cached_views.py
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from scipy.stats import t as student

import sets
import topwork
from places import options, require
from topwork.phase import Phase
from topwork.plan import Plan

NETWORK = "mobilenetv2_100"
SIZE = (128, 128)
SETS = ("hymenoptera", "flowers12")
PER_CLASS = (5, 20)
VIEWS = (1, 4, 16)
EPOCHS = 24
FROZEN = "blocks.5"
SOLVED, TRAINED, STAGE = "solved head", "trained head", "last stage"
LIVE = "live"
LIVE_OF = {SOLVED: TRAINED, TRAINED: TRAINED, STAGE: STAGE}


@dataclass(frozen=True)
class Row:
    """One fit; ``views`` is the number of cached ones, or `LIVE`."""

    data: str
    per_class: int
    way: str
    views: str
    seed: int
    accuracy: float
    seconds: float

    @property
    def group(self) -> tuple[str, int, str, str]:
        """What the seeds of one line of the table have in common."""
        return self.data, self.per_class, self.way, self.views


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="where layers are trained")
    parser.add_argument("--data-set", choices=SETS, action="append", help="this one only")
    parser.add_argument("--per-class", type=int, action="append", help="training images per class")
    parser.add_argument("--json", type=Path, help="file for a row of each fit")
    args = parser.parse_args()
    model = args.weights / NETWORK
    require(args.data, model)
    warm_up(args, model)
    rows = []
    for name in args.data_set or SETS:
        for per_class in args.per_class or PER_CLASS:
            for seed in range(args.seeds):
                for (way, views), plan in plans(model, args.epochs).items():
                    rows.append(fitted(name, per_class, seed, way, views, plan, args.data))
                    print(shown(rows[-1]), flush=True)
                    if args.json:
                        text = json.dumps([asdict(row) for row in rows], indent=2)
                        args.json.write_text(text + "\n", encoding="utf-8")
    print(table(rows))
    return 0


def plans(model: Path, epochs: int) -> dict[tuple[str, str], Plan]:
    """Return the plan of each line of the table, by its way and its views."""
    phases = {
        SOLVED: Phase(),
        TRAINED: Phase(epochs=epochs, batch=16, rate=1e-2, warmup=1),
        STAGE: Phase(frozen=FROZEN, epochs=epochs, batch=16, rate=3e-3, warmup=1),
    }
    counts = {str(views): views for views in VIEWS} | {LIVE: epochs}
    return {
        (way, views): Plan(str(model), input_size=SIZE, views=count, phases=(phase,))
        for way, phase in phases.items()
        for views, count in counts.items()
        if way != SOLVED or views != LIVE
    }


def warm_up(args: argparse.Namespace, model: Path) -> None:
    """Fit once, uncounted: imports, file cache, and every library makes up its mind."""
    plan = plans(model, 1)[STAGE, "1"]
    fitted(SETS[0], 5, 0, STAGE, "1", plan, args.data)


def fitted(
    name: str, per_class: int, seed: int, way: str, views: str, plan: Plan, data: Path
) -> Row:
    """Fit a plan with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = sets.write_set(name, data, Path(folder), seed, train=per_class)
        before = os.environ.get("TOPWORK_CACHE")
        os.environ["TOPWORK_CACHE"] = f"{folder}/cache"
        try:
            record = topwork.fit(manifest, f"{folder}/run", plan=plan, seed=seed)
        finally:
            os.environ.pop("TOPWORK_CACHE")
            if before:
                os.environ["TOPWORK_CACHE"] = before
    return Row(name, per_class, way, views, seed, record["accuracy"], record["timings"]["fit"])


def shown(row: Row) -> str:
    """Return one fit as a line."""
    name = f"{row.data}, {row.per_class} per class, seed {row.seed}, {row.way}, {row.views} views"
    return f"{name}: {row.accuracy:.3f}, {row.seconds:.1f} s"


def table(rows: list[Row]) -> str:
    """Return the means over the seeds, and their differences from live augmentation.

    The intervals are those of Student's t; differences are taken seed by seed.
    """
    groups: dict[tuple[str, int, str, str], dict[int, Row]] = defaultdict(dict)
    for row in rows:
        groups[row.group][row.seed] = row
    lines = [
        "",
        "| set | labels per class | way | views | accuracy | 95 % interval | against live, points"
        " | seconds | live takes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (data, per_class, way, views), fits in groups.items():
        live = groups.get((data, per_class, LIVE_OF[way], LIVE), {})
        mean, low, high = interval([fit.accuracy for fit in fits.values()])
        seconds = statistics.median(fit.seconds for fit in fits.values())
        against = longer = ""
        if views != LIVE and live.keys() == fits.keys():
            gains = [100 * (fits[seed].accuracy - live[seed].accuracy) for seed in fits]
            against = "{:+.1f} ({:+.1f} to {:+.1f})".format(*interval(gains))
            ratios = [live[seed].seconds / fits[seed].seconds for seed in fits]
            longer = f"{statistics.median(ratios):.1f}x"
        lines.append(
            f"| {data} | {per_class} | {way} | {views} | {mean:.3f} | [{low:.3f}, {high:.3f}]"
            f" | {against} | {seconds:.1f} | {longer} |"
        )
    return "\n".join(lines)


def interval(values: list[float]) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval, which a single value has not."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, math.nan, math.nan
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


if __name__ == "__main__":
    sys.exit(main())
