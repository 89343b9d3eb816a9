"""Codes of small images, end to end: in batches as large as their size asks for, and two at a time.

Two at a time are the fastest for photos of 224 pixels, where nothing differs. The cache is empty
each time, and PyTorch is asked for by name, so that no round compiles anything. The two ways take
turns; a ratio compares those of one round.

    python benchmarks/batches.py
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import torch

from extraction import cache_at
from places import options, require
from topwork.data.image_set import ImageSet
from topwork.data.items import open_images
from topwork.network import device
from topwork.network.loading import Loaded, load_backbone
from topwork.network.zoo import find_backbone
from topwork.plan import Plan
from topwork.trunk.execution import Execution
from topwork.trunk.extraction import extract, prepare

MNIST, CIFAR, PHOTOS = "mnist.npz", "cifar10_third_jpg.zip", "hymenoptera"
CASES = (  # network, side in pixels, images, how many
    ("topwork:dense", 28, MNIST, 4_000),
    ("topwork:small_convnet", 28, MNIST, 4_000),
    ("topwork:cifar_resnet20", 32, CIFAR, 2_000),
    ("timm:mobilenetv2_100", 96, PHOTOS, 397),
    ("timm:mobilenetv2_100", 160, PHOTOS, 397),
)
TWO = 2, 2  # the smallest batch and the largest
ROUNDS = 3
WANTED = 1.2  # up to 96 pixels
WANTED_ABOVE = 0.95


def main() -> int:
    args = options(__doc__).parse_args()
    require(args.data)
    passed = True
    for name, side, data, count in CASES:
        plan = Plan(name, reused="input", frozen_random=True, input_size=(side, side))
        loaded, images = load_backbone(find_backbone(name), plan), open_images(args.data / data)
        digests = [hashlib.sha256(images.read(index)).hexdigest() for index in range(count)]
        seconds, ratios = [], []
        for _ in range(ROUNDS):
            own, codes = extracted(loaded, images, digests)
            with patch.object(device, "CPU_BATCHES", TWO):
                two, same = extracted(loaded, images, digests)
            if np.abs(codes - same).max() > 1e-5 * np.abs(same).max():
                sys.exit(f"{name} at {side} pixels: the codes differ")
            seconds.append(own)
            ratios.append(two / own)
        print(
            f"{name}, {count} images of {side} pixels: {median(seconds):.1f} s,"
            f" {median(ratios):.2f}x as fast ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )
        passed &= median(ratios) >= (WANTED if side <= 96 else WANTED_ABOVE)
    print("PASS" if passed else "FAIL")
    return not passed


def extracted(loaded: Loaded, images: ImageSet, digests: Sequence[str]) -> tuple[float, np.ndarray]:
    """Return how long the codes of the first images took, and the codes [N, D]."""
    with tempfile.TemporaryDirectory() as folder, cache_at(Path(folder)):
        start = time.perf_counter()
        extractor = prepare(
            loaded.chain,
            (loaded.chain.top.name,),
            "avg",
            loaded.backbone.preprocessing,
            Execution(torch.device("cpu"), runtime="eager"),
        )
        rows = extract(extractor, images, range(len(digests)), digests).rows
        return time.perf_counter() - start, rows


if __name__ == "__main__":
    sys.exit(main())
