"""How often a network says the same of a photo that was decoded fast and of one decoded exactly.

Every photo is predicted by MobileNetV2 twice, from the pixels of either way: its class among the
1,000 of ImageNet and, where a head was fitted on the exact codes of a training part, the head's
class of the others. Two threads, batches of 2: the two renderings of a photo. Wanted: 99.5 % over
all photo sets. In none of them is a photo so large that it would be decoded at a reduced scale;
so photos enlarged to 1600 x 1200, as benchmarks/decoding.py makes them, are shown apart, and beside
them what another small change of pixels does: bilinear instead of bicubic resizing.

    python benchmarks/decoding_agreement.py [--most N] [--json FILE]
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from decoding import PREPROCESSING, enlarged
from places import options, require
from topwork.data.augment import PLAIN
from topwork.data.rendering import rendered
from topwork.data.views import to_tensor

WANTED = 0.995
LARGE = (1600, 1200)
BILINEAR = replace(PREPROCESSING, interpolation="bilinear")

Pair = tuple[np.ndarray, np.ndarray]
"""The exact pixels of a photo, and others."""

SETS = {
    "hymenoptera": "hymenoptera/*/*/*.jpg",
    "flowers12": "flowers12/*/*/*.jpg",
    "pacs photo": "pacs/photo/*/*.jpg",
    "pacs art": "pacs/art_painting/*/*.jpg",
    "pacs sketch": "pacs/sketch/*/*.jpg",
    "sign_digits": "sign_digits/*/*",
    "neu_steel": "neu_steel/*/*",
    "wbc": "wbc/images/*",
    "imagenet_1000_photos": "imagenet_1000_photos_160px.zip",
    "tiny_imagenet": "tiny_imagenet_200x75.zip",
    "cifar10_third": "cifar10_third_jpg.zip",
}
SAMPLED = {"tiny_imagenet": 2000, "cifar10_third": 2000}
WITH_HEAD = {"hymenoptera": "val", "flowers12": "test"}


@dataclass(frozen=True)
class Photo:
    """One photo: its bytes, and its class and side if they are the names of its folders."""

    data: bytes
    label: str = ""
    side: str = ""


@dataclass(frozen=True)
class Row:
    """How many predictions were the same for a set and a head."""

    photos: str
    head: str
    count: int
    same: int


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--most", type=int, help="photos per set; all where not given")
    parser.add_argument("--json", type=Path, help="keep the rows in this file")
    args = parser.parse_args()
    require(args.data, args.weights)
    torch.set_num_threads(1)
    network = timm.create_model(f"local-dir:{args.weights / 'mobilenetv2_100'}", pretrained=True)
    network = network.eval().to(memory_format=torch.channels_last)

    def photos(name: str) -> list[Photo]:
        return sample(read(args.data, SETS[name]), args.most or SAMPLED.get(name))

    rows = [row for name in SETS for row in compare(network, name, photos(name), both_ways)]
    apart = []
    for name in WITH_HEAD:
        apart += compare(network, name, photos(name), enlarged_both_ways, " at 1600 x 1200")
        apart += compare(network, name, photos(name), bilinear_instead, ", bilinear instead")
    count, same = (sum(getattr(row, key) for row in rows) for key in ("count", "same"))
    print(f"over all sets as they are: {same / count:.2%} of {count} (wanted {WANTED:.1%})")
    if args.json:
        kept = [asdict(row) for row in rows + apart]
        args.json.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    passed = same / count >= WANTED
    print("PASS" if passed else "FAIL")
    return not passed


def read(data: Path, pattern: str) -> list[Photo]:
    """Return the photos of a folder's files or of a zip, in the order of their names."""
    if pattern.endswith(".zip"):
        with zipfile.ZipFile(data / pattern) as archive:
            names = sorted(name for name in archive.namelist() if is_photo(name))
            return [Photo(archive.read(name), "", "") for name in names]
    return [
        Photo(path.read_bytes(), path.parent.name, path.parent.parent.name)
        for path in sorted(data.glob(pattern))
        if is_photo(path.name)
    ]


def is_photo(name: str) -> bool:
    return name.lower().endswith((".jpg", ".jpeg", ".png"))


def sample(photos: list[Photo], most: int | None) -> list[Photo]:
    """Return at most so many photos, spread evenly."""
    if most is None or len(photos) <= most:
        return photos
    return [photos[number * len(photos) // most] for number in range(most)]


def both_ways(data: bytes) -> Pair:
    """Return the pixels of either way."""
    exact, fast = (
        rendered(data, "a photo", PREPROCESSING, PLAIN, "", decoding)
        for decoding in ("exact", "fast")
    )
    return exact, fast


def enlarged_both_ways(data: bytes) -> Pair:
    """Return the pixels of either way of a large photo."""
    return both_ways(enlarged(data, LARGE))


def bilinear_instead(data: bytes) -> Pair:
    """Return exact pixels, resized as they should be and in another usual manner."""
    exact, bilinear = (
        rendered(data, "a photo", preprocessing, PLAIN, "", "exact")
        for preprocessing in (PREPROCESSING, BILINEAR)
    )
    return exact, bilinear


def compare(
    network: Any,
    name: str,
    photos: list[Photo],
    pair: Callable[[bytes], Pair],
    note: str = "",
) -> list[Row]:
    """Return and print how often predictions are the same for the two renderings of photos."""

    def predict(photo: Photo) -> Pair:
        torch.set_num_threads(1)
        pixels = to_tensor(np.stack(pair(photo.data)), PREPROCESSING)
        with torch.inference_mode():
            maps = network.forward_features(pixels.to(memory_format=torch.channels_last))
            codes = network.forward_head(maps, pre_logits=True)
            return codes.numpy(), network.classifier(codes).argmax(1).numpy()

    with ThreadPoolExecutor(2) as pool:
        codes, classes = map(np.stack, zip(*pool.map(predict, photos), strict=True))
    rows = [agreement(name + note, "ImageNet", classes)]
    if name in WITH_HEAD:
        held_out = np.array([photo.side == WITH_HEAD[name] for photo in photos])
        labels = np.array([photo.label for photo in photos])
        head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
        head.fit(codes[~held_out, 0], labels[~held_out])
        predicted = [head.predict(codes[held_out, way]) for way in (0, 1)]
        rows.append(agreement(name + note, "fitted", np.stack(predicted, axis=1)))
    return rows


def agreement(name: str, head: str, classes: np.ndarray) -> Row:
    """Return and print how often two predictions [N, 2] are the same."""
    row = Row(name, head, len(classes), int((classes[:, 0] == classes[:, 1]).sum()))
    print(f"{name}, {head} head: {row.same / row.count:.2%} of {row.count}", flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
