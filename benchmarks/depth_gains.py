"""What the depth that the profile chooses gains over the top, on targets unlike ImageNet.

MobileNetV2 at its own 224 pixels on blood cells (wbc), hand signs (sign_digits) and scikit-learn's
digits of 8x8 pixels. In each of several divisions the profile of the training part alone chooses a
depth and a kind of head; a head is fitted there and at the top to all of the training part, its
strength chosen within, and both are judged by the test part. The gain is the mean over the
divisions. Its interval is that of paired differences; an image (of hand signs: a signer) that is
tested in several divisions counts as one. Training parts are whole, or cut down to so many images
a class: how many the reference runs had is not known, so that the gain is as wanted if one of the
sizes shows it. Beside it is what scikit-learn's logistic regression
on standardized codes makes of the same two depths, which is how the reference runs were done.

    python benchmarks/depth_gains.py
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from places import options, require
from sets import write_set
from topwork.advice.comparison import paired_difference
from topwork.advice.depth_codes import DepthCodes, collect
from topwork.advice.profile import DepthResult, make_profile
from topwork.data.arrays import images_from_arrays
from topwork.data.audit import audit
from topwork.data.image_set import ImageSet
from topwork.data.items import open_images
from topwork.learn.fit import groups_of
from topwork.learn.probe import probe
from topwork.learn.targets import Targets, targets_of
from topwork.network.loading import load_backbone
from topwork.network.zoo import Backbone, find_backbone
from topwork.plan import Plan
from topwork.trunk.execution import Execution

NETWORK = "mobilenetv2_100"
REFERENCE = {"wbc": 0.09, "sign_digits": 0.06, "digits": 0.05}
SIZES = (10, 40, None)  # training images a class
TEST_SHARE = 0.4  # of scikit-learn's digits, as of the others


Source = Callable[[int, int | None], ImageSet]


@dataclass(frozen=True)
class Division:
    """One division's outcome on its test images.

    Attributes:
        depth: that the profile chose.
        chosen: [n] whether the head there is right.
        top: [n] whether the head at the top is right.
        regression: accuracies of scikit-learn's logistic regression, there and at the top.
        names: [n] of the images, or of the groups that they belong to.
    """

    depth: str
    chosen: np.ndarray
    top: np.ndarray
    regression: tuple[float, float]
    names: np.ndarray


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="divisions of each set")
    parser.add_argument("--train", type=int, action="append", help="training images a class")
    parser.add_argument("--only", choices=REFERENCE, action="append", help="this set")
    args = parser.parse_args()
    require(args.data, args.weights / NETWORK)
    network = find_backbone(str(args.weights / NETWORK))
    passed = True
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TOPWORK_CACHE"] = f"{folder}/cache"  # the divisions share their codes
        for name in args.only or REFERENCE:
            source = sources(args.data, Path(folder))[name]
            found = []
            for count in args.train or SIZES:
                divisions = [
                    divide_and_judge(source(seed, count), network, seed, regression=True)
                    for seed in range(args.seeds)
                ]
                found.append(summary(name, count, divisions))
            print(f"{name}: {'PASS' if any(found) else 'FAIL'}", flush=True)
            passed &= any(found)
    print("PASS" if passed else "FAIL")
    return not passed


def sources(data: Path, folder: Path) -> dict[str, Source]:
    """Return what gives the divided images of a set for a seed and a number a class."""
    return {
        "wbc": lambda seed, count: open_images(write_set("wbc", data, folder, seed, train=count)),
        "sign_digits": lambda seed, count: open_images(
            write_set("sign_digits", data, folder, seed, train=count)
        ),
        "digits": digits,
    }


def digits(seed: int, count: int | None) -> ImageSet:
    """Return scikit-learn's digits, two fifths of each drawn for testing."""
    bunch = load_digits()
    order = np.random.default_rng(seed).permutation(len(bunch.target))
    train, test = [], []
    for digit in range(10):
        own = order[bunch.target[order] == digit]
        tested = round(TEST_SHARE * len(own))
        test.extend(own[:tested])
        train.extend(own[tested:][:count])
    rows = np.array([*train, *test])
    pixels = np.rint(bunch.images[rows] * (255 / 16)).astype(np.uint8)
    split = ["train"] * len(train) + ["test"] * len(test)
    return images_from_arrays(pixels, bunch.target[rows].tolist(), split=split)


def divide_and_judge(
    images: ImageSet, backbone: Backbone, seed: int, *, regression: bool = False
) -> Division:
    """Let a profile of the training part choose a depth, and judge it and the top by the rest.

    Args:
        images: with or without a test part.
        backbone: whose codes are judged.
        seed: of folds and of what is drawn.
        regression: whether scikit-learn's is fitted too.
    """
    audited = audit(images)
    loaded = load_backbone(backbone, Plan(backbone.name), seed)
    execution = Execution(torch.device("cpu"))
    split = audited.split
    learned = collect(loaded, images, audited, (*split.train, *split.val), execution)
    tested = collect(loaded, images, audited, split.test, execution)
    targets = targets_of(images, learned.indices, "softmax")
    wanted = targets_of(images, tested.indices, "softmax", names=targets.names)
    groups = groups_of(images, audited, learned.indices)
    profile = make_profile(loaded, targets, groups, learned, seed=seed)
    rights, scores = zip(
        *(
            judge_depth(depth, learned, tested, targets, wanted, groups, seed, regression)
            for depth in (profile.best, profile.top)
        ),
        strict=True,
    )
    names = groups_of(images, audited, tested.indices)
    found = Division(profile.best.cut.name, rights[0], rights[1], scores, names)
    print(
        f"  seed {seed}: {len(targets.values)} train, {len(names)} test; {found.depth}"
        f" {found.chosen.mean():.3f}, {profile.top.cut.name} {found.top.mean():.3f}",
        flush=True,
    )
    return found


def judge_depth(
    depth: DepthResult,
    learned: DepthCodes,
    tested: DepthCodes,
    targets: Targets,
    wanted: Targets,
    groups: np.ndarray,
    seed: int,
    regression: bool,
) -> tuple[np.ndarray, float]:
    """Return whether a head at a depth is right about each test image, and the regression's score.

    The head is of the kind that the profile chose there; without a regression its score is NaN.
    """
    codes, others = learned.at(depth.cut.name), tested.at(depth.cut.name)
    head = probe(
        codes, targets.values, targets.outputs, kind=depth.head, groups=groups, seed=seed
    ).head
    right = (head.scores(others).argmax(axis=1) == wanted.values).astype(np.float64)
    if not regression:
        return right, np.nan
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    fitted.fit(codes, targets.values)
    return right, float(fitted.score(others, wanted.values))


def summary(name: str, count: int | None, divisions: list[Division]) -> bool:
    """Print the gain with its interval; say whether it comes up to the reference's."""
    chosen, top, names = (
        np.concatenate([getattr(found, part) for found in divisions])
        for part in ("chosen", "top", "names")
    )
    gain = paired_difference(chosen, top, names)
    there, above = np.mean([found.regression for found in divisions], axis=0)
    reference = REFERENCE[name]
    passed = gain.low > 0 and gain.high >= reference
    print(
        f"{name}, {count or 'all'} a class: {top.mean():.3f} at the top, {chosen.mean():.3f} at the"
        f" chosen depth ({', '.join(sorted({found.depth for found in divisions}))}):"
        f" {100 * gain.value:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f});"
        f" logistic regression {above:.3f} and {there:.3f}, {100 * (there - above):+.1f};"
        f" wanted about {100 * reference:+.0f}: {'yes' if passed else 'no'}",
        flush=True,
    )
    return passed


if __name__ == "__main__":
    sys.exit(main())
