"""What the choice of a runtime is worth: six networks, eager against what topwork chooses.

Each network, with random weights at its own input size, goes through the choice that extraction
makes, with an empty cache and enough images ahead for it to repay itself. Then eager and the
runtime chosen are timed anew, in turns, batches run side by side as extraction does; a ratio
compares those of one round, and the median of the rounds counts.

    python benchmarks/runtimes.py
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import torch

from places import options
from topwork.data.loading import workers
from topwork.network.codes import choose_pool
from topwork.network.device import one_core_a_thread
from topwork.network.loading import build_chain
from topwork.network.zoo import find_backbone
from topwork.trunk.execution import Execution
from topwork.trunk.extraction import choose_runner, prepare
from topwork.trunk.runtimes.timing import fixed_pixels, seconds_per_image

NETWORKS = (
    "mobilenetv2_100",
    "resnet18",
    "vit_tiny_patch16_224",
    "squeezenet1_1",
    "efficientnet_b0",
    "convnext_atto",
)
IMAGES = 10_000
WANTED_MEAN, WANTED_EACH = 1.3, 0.95
PACKAGES = ("torch", "timm", "onnx", "onnxruntime", "openvino")


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="that count")
    parser.add_argument("--network", action="append", help="this one only")
    parser.add_argument("--size", type=int, help="height and width of images, in pixels")
    parser.add_argument("--json", type=Path, help="file for a row of each network")
    args = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(", ".join(f"{name} {version(name)}" for name in PACKAGES))
    rows = []
    for name in args.network or NETWORKS:
        rows.append(compare(name, args.rounds, args.size))
        print(described(rows[-1]), flush=True)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return summary([row["ratio"] for row in rows])


def compare(name: str, rounds: int, size: int | None) -> dict[str, Any]:
    """Choose a runtime for a network, then time it and eager in turns."""
    backbone = find_backbone(name)
    preprocessing = backbone.preprocessing.adapted((size, size) if size else None, None)
    chain = build_chain(backbone.spec, preprocessing.size)
    pool = choose_pool(chain, [chain.top], None)
    with one_core_a_thread():
        extractor = prepare(
            chain, [chain.top.name], pool, preprocessing, Execution(torch.device("cpu"))
        )
        extractor.canary  # noqa: B018  (timed by extraction before it chooses)
        begin = time.perf_counter()
        chosen = in_an_empty_cache(lambda: choose_runner(extractor, IMAGES))
        choosing = time.perf_counter() - begin
        pixels = fixed_pixels((chosen.runtime.batch, *extractor.program.size))
        seconds = [
            [seconds_per_image(run, pixels, workers()) for run in (extractor.eager.run, chosen.run)]
            for _ in range(rounds)
        ]
    # Where eager is chosen there is nothing to compare: two timings would differ by noise alone.
    ratios = [eager / other for eager, other in seconds]
    is_eager = chosen.runtime.name == "eager"
    return {
        "network": name,
        "runtime": chosen.runtime.name,
        "eager": 1 / median(eager for eager, _ in seconds),
        "chosen": 1 / median(other for _, other in seconds),
        "ratio": 1.0 if is_eager else median(ratios),
        "ratios": [1.0] * rounds if is_eager else sorted(ratios),
        "choosing": choosing,
    }


def in_an_empty_cache(work: Any) -> Any:
    """Run something with a cache of its own."""
    before = os.environ.get("TOPWORK_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TOPWORK_CACHE"] = folder
        try:
            return work()
        finally:
            os.environ.pop("TOPWORK_CACHE")
            if before:
                os.environ["TOPWORK_CACHE"] = before


def described(row: dict[str, Any]) -> str:
    """Return a row as a line."""
    low, high = row["ratios"][0], row["ratios"][-1]
    return (
        f"{row['network']}: eager {row['eager']:.4g} images/s, {row['runtime']}"
        f" {row['chosen']:.4g}; {row['ratio']:.2f}x ({low:.2f} to {high:.2f}), chosen in"
        f" {row['choosing']:.1f} s (load {os.getloadavg()[0]:.1f})"
    )


def summary(ratios: list[float]) -> int:
    """Print what all ratios come to; return 1 if that is not as wanted."""
    mean = prod(ratios) ** (1 / len(ratios))
    passed = mean >= WANTED_MEAN and min(ratios) >= WANTED_EACH
    print(
        f"geometric mean {mean:.2f} (wanted {WANTED_MEAN}), lowest {min(ratios):.2f} (wanted"
        f" {WANTED_EACH})"
    )
    print("PASS" if passed else "FAIL")
    return not passed


if __name__ == "__main__":
    sys.exit(main())
