"""Whether shape and distance tell data like ImageNet from other data; where the limits lie.

Near are photos of animals, plants and things; far are blood cells, steel, hand signs, scans and
digits, 40 images of each class, or what there is. For each network and set: where the profile
peaks, by how many standard errors (se) the loss at the top and at the middle lies above that, the
distance at the batch norms and by a card made of 200 photos of ImageNet (with all images, and with
16 of them), what the shape alone says, and the verdict. The profile of ResNet-18 cut down to layer3
can be no sign; ViT-Tiny and SqueezeNet have no batch norms, so their verdict rests on the shape.
The backbone that comes with topwork has a card of its own, of what it learned from, and its verdict
goes by that. It is shown, not judged: flowers that are like all of ImageNet need not be like the
198 classes that it knows.

It passes if all distances lie on their side of the limits (of 16 images, not on the other), if no
verdict with a distance is the opposite of what the set is, and at most one without. Two controls,
labels at random and random weights: of both it must be said that nothing transfers.

    python benchmarks/similarity.py
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from few_images import FAR, NEAR, few_images, load_network, photos, profile_of
from places import options, require
from topwork.advice.depth_codes import DepthCodes, collect
from topwork.advice.distances import LIMITS, Distances
from topwork.advice.norm_distances import batch_norm_distances, sample_pixels
from topwork.advice.profile import Profile, make_profile
from topwork.advice.similarity import similarity_of
from topwork.advice.source_card import Card, card_distances, card_of, statistics_of
from topwork.data.audit import audit
from topwork.data.image_set import ImageSet
from topwork.network.loading import Loaded, load_backbone
from topwork.network.zoo import find_backbone
from topwork.plan import Plan
from topwork.trunk.execution import Execution

SHIPPED = "topwork:rootstock"
NETWORKS = ("mobilenetv2_100", "resnet18_to_layer3", "vit_tiny", "squeezenet1_1", SHIPPED)
PHOTOS = 200
FEW = 16  # images that a distance must do with
OPPOSITE = {"similar": "different", "different": "similar"}


def main() -> int:
    args = arguments()
    require(args.data, args.weights)
    wrong: dict[str, list[str]] = {"limits": [], "with": [], "without": [], "shipped": []}
    for network in args.only or NETWORKS:
        if network == SHIPPED:
            loaded = load_backbone(find_backbone(SHIPPED), Plan(SHIPPED))
        else:
            loaded = load_network(network, args.weights)
        card = card_of(loaded) or card_for(loaded, args.data)
        print(f"{network}: {limits_in_words()}")
        print(f"  {'data':12}{'n':>4} {'best at':>7}{'top':>8}{'middle':>8}", end="")
        print(
            f"  {'norms':>6}{'of 16':>6}  {'card':>6}{'of 16':>6}  {'shape':12} verdict, transfers"
        )
        for wanted, names in (("similar", NEAR), ("different", FAR)):
            for name in names:
                images = few_images(name, args.data, args.per_class, args.seed)
                for kind in judged(loaded, card, name, images, wanted):
                    kind = "shipped" if network == SHIPPED else kind
                    wrong[kind].append(f"{network} {name}")
    for kind, cases in wrong.items():
        print(f"wrong, {kind}: {', '.join(cases) or 'none'}")
    silent = controls(args.weights, few_images("hymenoptera", args.data, args.per_class))
    passed = not wrong["limits"] and not wrong["with"] and len(wrong["without"]) <= 1 and silent
    print("PASS" if passed else "FAIL")
    return not passed


def arguments() -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--per-class", type=int, default=40, help="images of each class")
    parser.add_argument("--seed", type=int, default=0, help="which images are drawn")
    parser.add_argument("--only", choices=NETWORKS, action="append", help="this network")
    return parser.parse_args()


def limits_in_words() -> str:
    """Return the limits of near and far."""
    return ", ".join(
        f"{where} near to {near}, far from {far}" for where, (near, far) in LIMITS.items()
    )


def card_for(loaded: Loaded, data: Path) -> Card:
    """Return the statistics of ImageNet's photos as a network sees them."""
    images = photos(data, PHOTOS)
    audited = audit(images, numbers=True)
    execution = Execution(torch.device("cpu"), runtime="eager")
    codes = collect(loaded, images, audited, range(len(images)), execution)
    return statistics_of(*by_name(codes))


def by_name(codes: DepthCodes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return codes and poolings by the names of the cut points."""
    names = [cut.name for cut in codes.cuts]
    return {name: codes.at(name) for name in names}, dict(zip(names, codes.pools, strict=True))


def judged(loaded: Loaded, card: Card, name: str, images: ImageSet, wanted: str) -> list[str]:
    """Print what is said of a data set; return what of it is wrong."""
    profile = profile_of(loaded, images)
    norms = distances_at_norms(loaded, images, profile)
    codes, pools = by_name(profile.codes)
    rows = np.linspace(0, len(images) - 1, FEW).round().astype(int)
    few = {name: values[rows] for name, values in codes.items()}
    cards = [card_distances(card, loaded.chain, own, pools) for own in (codes, few)]
    known = cards[0] if card_of(loaded) else norms[0]  # as `topwork advise` would know it
    found = similarity_of(profile, known)
    shape = found.shape
    print(
        f"  {name:12}{len(images):4} {shape.peak:7.0%}{shape.fall.errors:5.1f} se"
        f"{shape.upper_half.errors:5.1f} se  {values_of(norms)}  {values_of(cards)}"
        f"  {shape.says:12} {found.verdict}, {found.transfers}",
        flush=True,
    )
    wrong = []
    for whole, of_few in (norms, cards):
        if whole and of_few and (whole.says != wanted or of_few.says == OPPOSITE[wanted]):
            wrong.append("limits")
    if found.verdict == OPPOSITE[wanted]:
        wrong.append("with" if known else "without")
    return wrong


def distances_at_norms(
    loaded: Loaded, images: ImageSet, profile: Profile
) -> list[Distances | None]:
    """Return the distance at the batch norms of all images that are looked at, and of a few."""
    view, reused = loaded.backbone.preprocessing, loaded.plan.reused
    pixels = sample_pixels(images, profile.codes.indices, view)
    few = pixels[np.linspace(0, len(pixels) - 1, FEW).round().astype(int)]
    return [batch_norm_distances(loaded.chain, shown, view, reused) for shown in (pixels, few)]


def values_of(found: list[Distances | None]) -> str:
    """Return two distances in twelve columns."""
    return "".join(f"{'':>6}" if each is None else f"{each.value:6.2f}" for each in found)


def controls(weights: Path, images: ImageSet) -> bool:
    """Print what is said of random labels and of random weights; return whether that is right."""
    loaded = load_network(NETWORKS[0], weights)
    profile = profile_of(loaded, images)
    labels = np.random.default_rng(0).permutation(profile.targets.values)
    targets = replace(profile.targets, values=labels)
    shuffled = make_profile(loaded, targets, profile.groups, profile.codes)
    backbone = find_backbone(str(weights / NETWORKS[0]))
    plan = Plan(backbone.name, reused="input", frozen_random=True)
    untrained = profile_of(load_backbone(backbone, plan), images)
    return nothing("labels at random", shuffled) & nothing("random weights", untrained)


def nothing(what: str, profile: Profile) -> bool:
    """Print what is said of a control; return whether it is that nothing transfers."""
    found = similarity_of(profile, None)
    print(f"{what}: {found.verdict}, transfers {found.transfers}. {found.why}")
    return found.transfers is False


if __name__ == "__main__":
    sys.exit(main())
