"""Accuracy on the test part at each depth, beside reference figures that were measured elsewhere.

Outside the normal path: no audit, no cache, no fit. One pass through topwork's trunk gives the
pooled outputs at all depths; scikit-learn's logistic regression on the standardized outputs gives
the accuracy to compare ("ours"), topwork's own head on the same outputs another ("our head").
Conditions are the reference's: short side to 256, center crop 224, Pillow's bilinear. Of the row
with random weights only the two ends are known, so that its rank correlation says no more than
that it falls; ours is the mean over three seeds, which lie up to 0.12 apart.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import nan

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from places import options, require
from topwork.data.decode import decode
from topwork.data.image_set import ImageSet
from topwork.data.items import open_images
from topwork.data.loading import map_ahead
from topwork.data.views import Preprocessing, render, to_tensor
from topwork.learn.probe import probe
from topwork.named_plans import named_plan
from topwork.network.chain import Chain
from topwork.network.codes import Pool
from topwork.network.cut import Trunk
from topwork.network.loading import build_chain, load_backbone
from topwork.network.zoo import Backbone, find_backbone

MOBILENET, VIT = "mobilenetv2_100", "vit_tiny_patch16_224"
BLOCKS = tuple(f"blocks.{number}" for number in range(12))
DEPTHS = {MOBILENET: ("bn1", *BLOCKS[:7], "bn2"), VIT: (*BLOCKS, "norm")}
POOL = {MOBILENET: "avg", VIT: "token+avg"}
NEAR, ALIKE = 0.05, 0.9  # the largest difference and the least rank correlation that pass
BATCH = 2
SEEDS = (0, 1, 2)  # of random weights


@dataclass(frozen=True)
class Reference:
    """A row of the reference table: accuracies from the lowest depth up, nan where unknown."""

    network: str
    data: str
    accuracies: tuple[float, ...]
    pretrained: bool = True


TABLE = (
    Reference(
        MOBILENET,
        "hymenoptera",
        (0.536, 0.575, 0.752, 0.830, 0.850, 0.902, 0.902, 0.941, 0.954),
    ),
    Reference(
        MOBILENET,
        "flowers12",
        (0.500, 0.521, 0.758, 0.854, 0.904, 0.942, 0.958, 0.971, 0.963),
    ),
    Reference(
        VIT,
        "hymenoptera",
        (0.732, 0.758, 0.804, 0.824, 0.863, 0.895, 0.902, 0.895, 0.922, 0.961, 0.961, 0.948, 0.974),
    ),
    Reference(MOBILENET, "hymenoptera", (0.673, *[nan] * 7, 0.569), pretrained=False),
)


@dataclass(frozen=True)
class Views:
    """Rendered images: uint8 [N, H, W, 3], class numbers [N], and which are for training [N]."""

    pixels: np.ndarray
    labels: np.ndarray
    training: np.ndarray


def main() -> int:
    args = options(__doc__).parse_args()
    require(*(args.data / row.data for row in TABLE))
    require(*(args.weights / row.network for row in TABLE))
    torch.set_num_threads(1)  # so that no figure depends on the number of cores
    views: dict[str, Views] = {}
    passed = True
    for row in TABLE:
        backbone = find_backbone(str(args.weights / row.network))
        preprocessing = replace(backbone.preprocessing, interpolation="bilinear")
        if row.data not in views:
            views[row.data] = render_all(open_images(args.data / row.data), preprocessing)
        shown = views[row.data]
        runs = [accuracies(row, chain, preprocessing, shown) for chain in chains(row, backbone)]
        passed = report(row, np.mean(runs, axis=0)) and passed
    return 0 if passed else 1


def chains(row: Reference, backbone: Backbone) -> Iterator[Chain]:
    """Yield the network with pretrained weights, or with random ones of several seeds."""
    if row.pretrained:
        yield load_backbone(backbone, named_plan("features", backbone.name)).chain
        return
    for seed in SEEDS:
        yield build_chain(backbone.spec, backbone.preprocessing.size, seed)


def render_all(images: ImageSet, preprocessing: Preprocessing) -> Views:
    """Decode and render all images; both networks want the same size and resizing."""

    def view(index: int) -> np.ndarray:
        return render(decode(images.read(index), images.items[index].name), preprocessing)

    def views(batch: list[int]) -> np.ndarray:
        return np.stack([view(index) for index in batch])

    # The reference's reader takes no GIF; the one among the ants says "image not found".
    used = [i for i, item in enumerate(images.items) if not item.name.endswith(".gif")]
    batches = [used[i : i + BATCH] for i in range(0, len(used), BATCH)]
    pixels = [found for _, found in map_ahead(batches, views)]
    labels = [images.classes.index(images.items[index].labels[0]) for index in used]
    training = [images.items[index].split == "train" for index in used]
    return Views(np.concatenate(pixels), np.array(labels), np.array(training))


def codes_by_depth(
    row: Reference, chain: Chain, preprocessing: Preprocessing, pixels: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield the pooled outputs [N, D] at each depth of a row, the lowest first; one pass."""
    trunk = Trunk(chain, DEPTHS[row.network])
    parts: list[list[np.ndarray]] = []
    for start in range(0, len(pixels), BATCH):
        images = to_tensor(pixels[start : start + BATCH], preprocessing)
        outputs = trunk.outputs(images.contiguous(memory_format=torch.channels_last))
        parts.append([Pool(cut.layout, POOL[row.network])(value).numpy() for cut, value in outputs])
    return (np.concatenate(depth) for depth in zip(*parts, strict=True))


def accuracies(
    row: Reference, chain: Chain, preprocessing: Preprocessing, views: Views
) -> list[tuple[float, float]]:
    """Return for each depth the test accuracies of logistic regression and of topwork's head."""
    depths = codes_by_depth(row, chain, preprocessing, views.pixels)
    return [(logistic_regression(codes, views), own_head(codes, views)) for codes in depths]


def report(row: Reference, found: np.ndarray) -> bool:
    """Print accuracies [depths, 2] beside the reference; say whether they pass."""
    weights = (
        "pretrained weights" if row.pretrained else f"random weights, mean of {len(SEEDS)} seeds"
    )
    print(f"{row.network}, {weights}, {row.data}")
    print(f"  {'depth':12}{'reference':>10}{'ours':>8}{'our head':>10}")
    rows = zip(DEPTHS[row.network], row.accuracies, found, strict=True)
    for name, reference, (ours, own) in rows:
        shown = "" if np.isnan(reference) else f"{reference:.3f}"
        print(f"  {name:12}{shown:>10}{ours:8.3f}{own:10.3f}")
    known = np.array(row.accuracies)
    compared = ~np.isnan(known)
    difference = float(np.abs(found[compared, 0] - known[compared]).max())
    correlation = float(spearmanr(found[compared, 0], known[compared]).statistic)
    passed = difference <= NEAR and correlation >= ALIKE
    print(
        f"  largest difference {difference:.3f} (at most {NEAR}), rank correlation"
        f" {correlation:.3f} (at least {ALIKE}): {'PASS' if passed else 'FAIL'}\n",
        flush=True,
    )
    return passed


def logistic_regression(codes: np.ndarray, views: Views) -> float:
    """Return the test accuracy of scikit-learn's logistic regression on standardized codes."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(codes[views.training], views.labels[views.training])
    return float(classifier.score(codes[~views.training], views.labels[~views.training]))


def own_head(codes: np.ndarray, views: Views) -> float:
    """Return the test accuracy of topwork's head, its strength chosen inside the training part."""
    count = int(views.labels.max()) + 1
    head = probe(codes[views.training], views.labels[views.training], count).head
    predicted = head.scores(codes[~views.training]).argmax(1)
    return float((predicted == views.labels[~views.training]).mean())


if __name__ == "__main__":
    sys.exit(main())
