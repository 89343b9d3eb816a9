"""How well transferability scores agree with a linear probe about which backbone suits best.

Four backbones on eight data sets, 40 images of each class: the probe at the top and at the best
depth (accuracy on images that it did not see, by cross-validation), beside H-score, LogME, LEEP and
NCE of the codes at the top. Then for each score, over the data sets: Kendall's rank correlation
with the probe's loss at the best depth, the share of pairs of backbones that both order alike, and
what accuracy the best backbone by the score gives away. LEEP and NCE need the source's classifier,
which two of the backbones have. It passes if the recommendation gives away at most half a point in
the mean.

    python benchmarks/ranking.py
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from itertools import combinations
from math import isfinite, nan
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from few_images import FAR, NEAR, NETWORKS, few_images, load_network, profile_of
from places import options, require
from topwork.advice.ranking import Entry, Ranked, rank_backbones, scores_of
from topwork.network.loading import Loaded

SCORES = ("h_score", "log_me", "leep", "nce", "probe_at_top")
WANTED = 0.005  # of accuracy, that the recommended backbone may give away in the mean


@dataclass(frozen=True)
class Agreement:
    """How a score agrees with the probe on one data set.

    Attributes:
        correlation: Kendall's tau over the backbones.
        pairs: ordered alike, and all.
        given_away: accuracy of the probe's best backbone less that of the score's.
    """

    correlation: float
    pairs: tuple[int, int]
    given_away: float


def main() -> int:
    args = arguments()
    require(args.data, args.weights)
    networks = {name: load_network(name, args.weights) for name in NETWORKS}
    agreements: dict[str, list[Agreement]] = {score: [] for score in SCORES}
    recommended = []
    for name in args.only or (*NEAR, *FAR):
        ranking = ranked(networks, name, args)
        report(name, ranking)
        rows = [facts_of(place) for place in ranking]
        for score in SCORES:
            known = [row for row in rows if row[score] is not None]
            agreements[score].append(agreement(known, score))
        chosen = next(facts_of(place) for place in ranking if place.recommended)
        recommended.append(rows[0]["accuracy"] - chosen["accuracy"])
    print(f"{'score':14}{'correlation':>12}{'pairs alike':>14}{'given away, points':>20}")
    for score, found in agreements.items():
        alike, pairs = np.sum([each.pairs for each in found], axis=0)
        sure = [each.correlation for each in found if isfinite(each.correlation)]  # NaN: all tie
        correlation = np.mean(sure) if sure else nan
        lost = 100 * np.mean([each.given_away for each in found])
        print(f"{score:14}{correlation:12.2f}{f'{alike} of {pairs}':>14}{lost:20.1f}")
    given_away = float(np.mean(recommended))
    print(f"the recommended backbones give away {100 * given_away:.1f} points (wanted at most 0.5)")
    print("PASS" if given_away <= WANTED else "FAIL")
    return given_away > WANTED


def arguments() -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--per-class", type=int, default=40, help="images of each class")
    parser.add_argument("--only", action="append", help="this data set (may be repeated)")
    return parser.parse_args()


def ranked(networks: dict[str, Loaded], name: str, args: argparse.Namespace) -> tuple[Ranked, ...]:
    """Return the backbones ranked on a data set."""
    images = few_images(name, args.data, args.per_class)
    profiles = [profile_of(loaded, images) for loaded in networks.values()]
    return rank_backbones(
        [Entry(each, scores_of(each), 1000 * each.codes.seconds_an_image) for each in profiles]
    )


def facts_of(place: Ranked) -> dict[str, Any]:
    """Return the accuracy at the best depth, its loss, and all scores: the greater the better."""
    record = place.record()
    return {
        **record,
        "accuracy": record["value"],
        "probe_at_top": -place.entry.profile.top.best.best.loss,
    }


def agreement(rows: list[dict], score: str) -> Agreement:
    """Compare a score with the probe over backbones."""
    scores, losses = [row[score] for row in rows], [row["loss"] for row in rows]
    pairs = list(combinations(range(len(rows)), 2))
    alike = sum((scores[a] > scores[b]) == (losses[a] < losses[b]) for a, b in pairs)
    best, chosen = rows[int(np.argmin(losses))], rows[int(np.argmax(scores))]
    tau = float(kendalltau(scores, np.negative(losses)).statistic)
    return Agreement(tau, (alike, len(pairs)), best["accuracy"] - chosen["accuracy"])


def report(name: str, ranking: tuple[Ranked, ...]) -> None:
    """Print a data set's table."""
    images = len(ranking[0].entry.profile.targets.values)
    print(f"{name}, {images} images")
    print(f"  {'backbone':20}{'best':>7}{'loss':>7}  {'at':14}{'top':>6}", end="")
    print(f"{'H':>8}{'LogME':>8}{'LEEP':>8}{'NCE':>8}")
    for place in ranking:
        row, top = place.record(), place.entry.profile.top.best.out_of_fold["value"]
        shown = (row[score] for score in ("h_score", "log_me", "leep", "nce"))
        cells = "".join(f"{'':>8}" if value is None else f"{value:8.2f}" for value in shown)
        mark = " recommended" if place.recommended else ""
        label = row["backbone"].rpartition("/")[2].removeprefix("torchvision:")
        print(
            f"  {label:20}{row['value']:7.3f}{row['loss']:7.3f}  {row['depth']:14}{top:6.3f}"
            f"{cells}{mark}"
        )
    print(flush=True)


if __name__ == "__main__":
    sys.exit(main())
