"""How often 95 % intervals hold the truth.

In each of 200 draws a head is probed on 200 random images and tested on 200 others; the truth is
how the same head does on all images that are left. Counted is how often the interval of the test
holds it, for accuracy, balanced accuracy and log-loss, and how often cross-validation's interval
does: its rows also chose the strength, its heads saw four fifths of them, and its truth is that of
the head that was fitted to all. Codes: the top of MobileNetV2 at 64 pixels, computed once and
cached. Only the accuracy of the test is judged; beside each coverage stands its own interval.

    python benchmarks/intervals.py
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from places import options, require
from topwork.data.items import open_images
from topwork.learn.metrics import LEAST_PROBABILITY, evaluate, wilson
from topwork.learn.probe import probe
from topwork.network.loading import load_backbone
from topwork.network.zoo import find_backbone
from topwork.plan import Plan
from topwork.trunk.execution import Execution
from topwork.trunk.extraction import extract, prepare

SETS = {"MNIST": "mnist.npz", "medical_mnist": "medical_mnist_64_tenth.zip"}
BACKBONE = "mobilenetv2_100"
PIXELS = (64, 64)
ROWS = 200  # to train on, and as many to test on
FIGURES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "log_loss": "log-loss"}
JUDGED, FOLDS = "accuracy", "accuracy, cross-validated"
LEAST, MOST = 0.91, 0.99


@dataclass(frozen=True)
class Estimate:
    """An estimate's interval, and the truth."""

    value: float
    interval: tuple[float, float]
    truth: float


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--draws", type=int, default=200, help="of each set")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    args = parser.parse_args()
    require(args.data, args.weights)
    passed = True
    for name, file in SETS.items():
        start = time.perf_counter()
        codes, labels, classes = codes_of(args.data / file, args.weights / BACKBONE)
        print(
            f"{name}: {len(codes)} images, {len(classes)} classes,"
            f" codes in {time.perf_counter() - start:.0f} s"
        )
        start = time.perf_counter()
        found = defaultdict(list)
        for number in range(args.draws):
            generator = np.random.default_rng([args.seed, number])
            for figure, estimate in draw(codes, labels, classes, generator).items():
                found[figure].append(estimate)
        for figure, estimates in found.items():
            coverage = report(figure, estimates)
            passed &= figure != JUDGED or LEAST <= coverage <= MOST
        print(f"  {args.draws} draws in {time.perf_counter() - start:.0f} s", flush=True)
    print(f"the test's accuracy: wanted {LEAST:.0%} to {MOST:.0%}: {'PASS' if passed else 'FAIL'}")
    return not passed


def codes_of(data: Path, weights: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return codes [n, d] of all images, their classes [n], and what these are called."""
    images = open_images(data)
    loaded = load_backbone(find_backbone(str(weights)), Plan(str(weights), input_size=PIXELS))
    execution = Execution(torch.device("cpu"), cache="float32")
    extractor = prepare(
        loaded.chain,
        loaded.plan.codes,
        str(loaded.plan.pool),
        loaded.backbone.preprocessing,
        execution,
    )
    indices = range(len(images))
    digests = [hashlib.sha256(images.read(index)).hexdigest() for index in indices]
    codes = extract(extractor, images, indices, digests)
    labels = [images.classes.index(item.labels[0]) for item in images.items]
    readable = [index for index in indices if index not in codes.failed]
    return codes.rows[readable], np.array(labels)[readable], images.classes


def draw(
    codes: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    generator: np.random.Generator,
) -> dict[str, Estimate]:
    """Probe a head on some rows, test it on others, and see how it does on the rest."""
    order = generator.permutation(len(codes))
    train, test, rest = np.split(order, [ROWS, 2 * ROWS])
    probed = probe(codes[train], labels[train], len(classes))
    tested = evaluate(probed.head.probabilities(codes[test]), labels[test], classes)
    truths = true_figures(probed.head.probabilities(codes[rest]), labels[rest])
    found = {
        title: Estimate(tested[key]["value"], tested[key]["interval"], truths[key])
        for key, title in FIGURES.items()
    }
    folds = probed.out_of_fold
    found[FOLDS] = Estimate(folds["value"], folds["interval"], truths["accuracy"])
    return found


def true_figures(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return what `evaluate` does, without intervals, which take long of many images."""
    right = probabilities.argmax(axis=1) == labels
    losses = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], LEAST_PROBABILITY))
    return {
        "accuracy": right.mean(),
        "balanced_accuracy": np.mean([right[labels == label].mean() for label in set(labels)]),
        "log_loss": losses.mean(),
    }


def report(figure: str, estimates: list[Estimate]) -> float:
    """Print how often the intervals of a figure hold the truth, and return it."""
    lows, highs = np.array([estimate.interval for estimate in estimates]).T
    values = np.array([estimate.value for estimate in estimates])
    truths = np.array([estimate.truth for estimate in estimates])
    above, below = int((lows > truths).sum()), int((highs < truths).sum())
    held = len(estimates) - above - below
    low, high = wilson(held, len(estimates))
    print(
        f"  {figure:26} held {held / len(estimates):6.1%} ({low:.1%} to {high:.1%});"
        f" {above} too high, {below} too low; mean width {np.mean(highs - lows):.3f};"
        f" mean {values.mean():.3f}, truth {truths.mean():.3f}"
    )
    return held / len(estimates)


if __name__ == "__main__":
    sys.exit(main())
