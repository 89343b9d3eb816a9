"""What the backbone that comes with topwork is worth, against none, and against larger ones.

Linear heads on the codes of six targets, none of which it was made from: at the depth that the
profile of the training part chooses, with the kind and strength that cross-validation within it
chooses, judged by the test part. Beside it are the same network with random weights, SqueezeNet and
MobileNetV2, the latter two at 224 pixels. (timm starts a RegNet's residual branches at zero, so
that with random weights it is its stem and its shortcuts.) Where the data does not say what is for
testing, two fifths of it are (of neu_steel, all but 10 of a class), drawn anew with each seed; so
are random weights. Of the gap between random weights and SqueezeNet it should close a half, on the
mean of the photo sets.

Rows are appended to OUT/rootstock.jsonl; what is there is not done again.

    python benchmarks/rootstock.py
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from depth_gains import divide_and_judge
from kept_rows import append, row_of
from places import options, require
from sets import write_set
from topwork.data.items import open_images
from topwork.learn.metrics import wilson
from topwork.network.fetch import weights_file
from topwork.network.loading import sha256
from topwork.network.shipped import SHIPPED
from topwork.network.zoo import Backbone, find_backbone
from topwork.showing import with_random_weights

PHOTOS = ("hymenoptera", "flowers12", "pacs_photo")
SETS = (*PHOTOS, "sign_digits", "neu_steel", "wbc")
RANDOM, MODEST = "random weights", "squeezenet1_1"
SHARE = 0.5  # of the gap, wanted
HYMENOPTERA = 0.80  # accuracy, wanted


def main() -> int:
    parser = options(__doc__)
    place = Path(tempfile.gettempdir()) / "topwork-rootstock"
    parser.add_argument("--out", type=Path, default=place, help=f"folder for all results; {place}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--backbone", default=SHIPPED, help="another to be judged in its place")
    args = parser.parse_args()
    require(args.data, args.weights)
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TOPWORK_CACHE", str(args.out / "cache"))
    ours = find_backbone(args.backbone)
    rows = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            chance = with_random_weights(ours, Path(folder) / "random", seed)
            for name, (who, backbone) in pairs(ours, chance, args.weights):
                rows.append(judged(name, who, backbone, seed, args.data, args.out))
    return not summary(rows, ours.name)


def pairs(
    ours: Backbone, chance: Backbone, weights: Path
) -> Iterator[tuple[str, tuple[str, Backbone]]]:
    """Yield each set with each backbone."""
    squeezenet = weights / "squeezenet1_1.safetensors"
    backbones = {
        RANDOM: chance,
        ours.name: ours,
        MODEST: find_backbone("torchvision:squeezenet1_1", weights=squeezenet),
        "mobilenetv2_100": find_backbone(str(weights / "mobilenetv2_100")),
    }
    for name in SETS:
        for entry in backbones.items():
            yield name, entry


def judged(name: str, who: str, backbone: Backbone, seed: int, data: Path, out: Path) -> dict:
    """Return a row: how many test images the head at the chosen depth is right about."""
    weights = sha256(weights_file(backbone.weights)) if backbone.weights else None
    key = {"set": name, "backbone": who, "seed": seed, "weights": weights}
    log = out / "rootstock.jsonl"
    if there := row_of(log, key):
        return there
    print(f"{name}, {who}")
    found = divide_and_judge(open_images(write_set(name, data, out, seed)), backbone, seed)
    row = key | {
        "depth": found.depth,
        "right": int(found.chosen.sum()),
        "top": int(found.top.sum()),
        "n": len(found.chosen),
    }
    append(log, row)
    return row


def summary(rows: list[dict], ours: str) -> bool:
    """Print the table and what was wanted; say whether that is reached."""
    names = list(dict.fromkeys(row["backbone"] for row in rows))
    tested = {row["set"]: row["n"] for row in rows}
    titles = (f"{name} ({tested[name]} tested)" for name in SETS)
    print(f"\n| | {' | '.join(titles)} |\n|---|{'---|' * len(SETS)}")
    mean: dict[tuple[str, str], float] = {}
    for who in names:
        cells = []
        for name in SETS:
            own = [row for row in rows if (row["set"], row["backbone"]) == (name, who)]
            mean[name, who] = float(np.mean([row["right"] / row["n"] for row in own]))
            low, high = wilson(round(mean[name, who] * own[0]["n"]), own[0]["n"])
            depths = ", ".join(sorted({row["depth"] for row in own}))
            cells.append(f"{mean[name, who]:.3f} [{low:.3f}, {high:.3f}] {depths}")
        print(f"| {who} | {' | '.join(cells)} |")
    gained, gap = (
        np.mean([mean[name, who] - mean[name, RANDOM] for name in PHOTOS]) for who in (ours, MODEST)
    )
    print(f"of the gap to {MODEST} on photos it closes {gained / gap:.2f}; wanted {SHARE}")
    there = mean["hymenoptera", ours]
    print(f"hymenoptera {there:.3f}; wanted {HYMENOPTERA}")
    passed = bool(gained / gap >= SHARE and there >= HYMENOPTERA)
    print("PASS" if passed else "FAIL")
    return passed


if __name__ == "__main__":
    sys.exit(main())
