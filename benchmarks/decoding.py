"""How much faster the fast way from JPEG bytes to a network's pixels is than the exact one.

One thread decodes photos and resizes them for a network of 224 pixels (bicubic, crop 0.875, as
MobileNetV2 has it), by Pillow and by the fast way: medians of 5 alternating rounds, in time of the
processor. No photo of the
data sets is large, so they are enlarged (bicubic), given the mild noise of a sensor (a normal
distribution, sigma of one level) and saved at quality 90. How much there is to decode decides the
ratio of large ones; it is printed as bits per pixel.

    python benchmarks/decoding.py [--sizes 500x375 ...] [--json FILE]
"""

from __future__ import annotations

import io
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from places import options, require
from topwork.data.augment import PLAIN
from topwork.data.jpeg import reduction
from topwork.data.rendering import rendered
from topwork.data.views import Preprocessing

ROUNDS = 5
PHOTOS = 6
WANTED = {(500, 375): 2.0, (1600, 1200): 5.0, (4000, 3000): 9.0}
PREPROCESSING = Preprocessing((224, 224), 0.875, "bicubic", (0.5,) * 3, (0.5,) * 3)


@dataclass(frozen=True)
class Row:
    """What was measured of one size; times in milliseconds per photo."""

    size: tuple[int, int]
    bits_per_pixel: float
    reduced: int
    exact: float
    fast: float
    ratio: float
    lowest: float
    highest: float
    wanted: float


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--sizes", nargs="+", type=parsed_size, default=list(WANTED), help="WxH")
    parser.add_argument("--json", type=Path, help="keep the rows in this file")
    args = parser.parse_args()
    require(args.data)
    torch.set_num_threads(1)
    rows = []
    for size in args.sizes:
        row = measured(size, photos(args.data, size))
        rows.append(row)
        print(
            f"{size[0]} x {size[1]} ({row.bits_per_pixel:.2f} bits per pixel, decoded at"
            f" 1/{row.reduced}): exact {row.exact:.2f} ms, fast {row.fast:.2f} ms,"
            f" {row.ratio:.1f}x ({row.lowest:.1f} to {row.highest:.1f}; wanted {row.wanted:.0f})",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
    passed = all(row.ratio >= row.wanted for row in rows)
    print("PASS" if passed else "FAIL")
    return not passed


def parsed_size(text: str) -> tuple[int, int]:
    width, height = text.split("x")
    return int(width), int(height)


def photos(data: Path, size: tuple[int, int]) -> list[bytes]:
    """Return photos of bees and ants at this size."""
    paths = sorted((data / "hymenoptera/val").glob("*/*.jpg"))
    return [enlarged(path.read_bytes(), size) for path in paths[:: len(paths) // PHOTOS][:PHOTOS]]


def enlarged(data: bytes, size: tuple[int, int]) -> bytes:
    """Return a photo as a large JPEG: its center in that aspect ratio, resized, with mild noise."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    fitted = ImageOps.fit(image, size, Image.Resampling.BICUBIC)
    large = np.asarray(fitted, dtype=np.float32)
    noise = np.random.default_rng(0).standard_normal(large.shape, dtype=np.float32)
    file = io.BytesIO()
    noisy = np.rint(large + noise).clip(0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(file, "JPEG", quality=90)
    return file.getvalue()


def measured(size: tuple[int, int], files: list[bytes]) -> Row:
    """Time both ways in turn."""
    repeats = max(1, 1_000_000 // (size[0] * size[1]))
    rounds = []
    for _ in range(ROUNDS + 1):  # the first one fills caches
        exact, fast = (milliseconds(files, decoding, repeats) for decoding in ("exact", "fast"))
        rounds.append((exact, fast))
    ratios = sorted(exact / fast for exact, fast in rounds[1:])
    return Row(
        size=size,
        bits_per_pixel=8 * statistics.mean(map(len, files)) / (size[0] * size[1]),
        reduced=reduction(size, PREPROCESSING.resized_to),
        exact=statistics.median(exact for exact, _ in rounds[1:]),
        fast=statistics.median(fast for _, fast in rounds[1:]),
        ratio=statistics.median(ratios),
        lowest=ratios[0],
        highest=ratios[-1],
        wanted=WANTED.get(size, 1.0),
    )


def milliseconds(files: list[bytes], decoding: str, repeats: int) -> float:
    """Return the processor's time per photo; all is done by this thread."""
    start = time.thread_time()
    for _ in range(repeats):
        for data in files:
            rendered(data, "a photo", PREPROCESSING, PLAIN, "", decoding)
    return 1000 * (time.thread_time() - start) / (repeats * len(files))


if __name__ == "__main__":
    sys.exit(main())
