"""The shape of a profile: where it peaks, how much it rises to there, and how it falls to the top.

All comparisons are paired: the same images, judged by heads that never saw them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from topwork.advice.comparison import (
    ONE_STANDARD_ERROR,
    Difference,
    may_be_flawless,
    paired_difference,
    standard_errors_above,
)
from topwork.advice.distances import CANNOT_TELL, DIFFERENT, SIMILAR
from topwork.advice.profile import DepthResult, Profile
from topwork.learn.judging import Judged
from topwork.learn.targets import Targets

Array = np.ndarray

TOLD_APART = 2.0
"""Standard errors of the paired difference by which a loss must lie above the best one. The best of
some twenty depths is always a little better by chance: by 1.4 at the most where labels were drawn
at random, by 1.5 on photos like the source's."""

UPPER_HALF = 0.5
"""Of the multiply-adds up to the uppermost depth: where the upper half of the network begins."""


@dataclass(frozen=True)
class Comparison:
    """How much better one way is than another on the same rows.

    Attributes:
        errors: how far the loss of the second lies above that of the first, in standard errors of
            the paired difference.
        accuracy: how much more accurate the first is; None for numbers.
        open: whether groups are so few that nothing can be said, see `may_be_flawless`.
    """

    errors: float
    accuracy: Difference | None
    open: bool

    @property
    def told_apart(self) -> bool:
        """Whether the second is worse by more than chance."""
        return self.errors > TOLD_APART

    def record(self) -> dict[str, Any]:
        """Return plain data."""
        found = self.accuracy.record() if self.accuracy else {"value": None, "interval": None}
        errors = self.errors if np.isfinite(self.errors) else None
        return {**found, "standard_errors": errors, "told_apart": self.told_apart}


@dataclass(frozen=True)
class Shape:
    """What a profile looks like.

    Attributes:
        best: the depth with the least loss.
        lowest: the lowest depth, whose features are edges and colors.
        middle: the last depth in the lower half of the multiply-adds.
        top: the uppermost depth.
        whole: whether the top is the network's own, and not one that the plan cut down to.
        begins_low: whether the lowest depth lies in the lower half of the multiply-adds.
        peak: share of the multiply-adds up to the top that lie below the best depth.
        peak_depth: likewise, of the cut points.
        over_nothing: the best depth against always giving the same answer.
        rise: the best depth against the lowest.
        upper_half: the best depth against the middle.
        fall: the best depth against the top.
    """

    best: str
    lowest: str
    middle: str
    top: str
    whole: bool
    begins_low: bool
    peak: float
    peak_depth: float
    over_nothing: Comparison
    rise: Comparison
    upper_half: Comparison
    fall: Comparison

    @property
    def says(self) -> str:
        """What the shape alone says of similarity."""
        if self.fall.told_apart:
            return DIFFERENT
        as_good = self.fall.errors <= ONE_STANDARD_ERROR
        return SIMILAR if self.whole and as_good and self.upper_half.told_apart else CANNOT_TELL

    def record(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            **{name: getattr(self, name) for name in ("best", "lowest", "middle", "top")},
            "whole": self.whole,
            "peak_multiply_adds": self.peak,
            "peak_depth": self.peak_depth,
            **{
                name: getattr(self, name).record()
                for name in ("over_nothing", "rise", "upper_half", "fall")
            },
            "says": self.says,
        }


def shape_of(profile: Profile) -> Shape:
    """Return what a profile looks like."""
    depths, best, top = profile.depths, profile.best, profile.top
    middle = middle_of(depths)
    whole_cost = max(1, top.cut.multiply_adds)

    def against(other: DepthResult) -> Comparison:
        return compare(best.best, other.best, profile.groups)

    return Shape(
        best=best.cut.name,
        lowest=depths[0].cut.name,
        middle=middle.cut.name,
        top=top.cut.name,
        whole=top.cut.name == profile.loaded.chain.top.name,
        begins_low=depths[0].cut.multiply_adds <= UPPER_HALF * top.cut.multiply_adds,
        peak=best.cut.multiply_adds / whole_cost,
        peak_depth=best.cut.depth / top.cut.depth,
        over_nothing=over_nothing(best.best, profile.targets, profile.groups),
        rise=against(depths[0]),
        upper_half=against(middle),
        fall=against(top),
    )


def middle_of(depths: tuple[DepthResult, ...]) -> DepthResult:
    """Return the last depth in the lower half of the multiply-adds; the lowest if there is none."""
    limit = UPPER_HALF * depths[-1].cut.multiply_adds
    return [depths[0], *(depth for depth in depths if depth.cut.multiply_adds <= limit)][-1]


def compare(first: Judged, second: Judged, groups: Array) -> Comparison:
    """Compare two ways on the same held-out rows."""
    if first is second:
        errors, is_open = 0.0, False
    else:
        losses = second.losses, first.losses, groups[first.rows]
        errors, is_open = standard_errors_above(*losses), may_be_flawless(*losses)
    if first.right is None or second.right is None:
        return Comparison(errors, None, is_open)
    accuracy = paired_difference(first.right, second.right, groups[first.rows])
    return Comparison(errors, accuracy, is_open)


def over_nothing(judged: Judged, targets: Targets, groups: Array) -> Comparison:
    """Compare a way with giving every row the same answer."""
    said, right = of_one_answer(targets)
    rows = judged.rows
    losses = said[rows], judged.losses, groups[rows]
    errors, is_open = standard_errors_above(*losses), may_be_flawless(*losses)
    if judged.right is None or right is None:
        return Comparison(errors, None, is_open)
    return Comparison(errors, paired_difference(judged.right, right[rows], groups[rows]), is_open)


def of_one_answer(targets: Targets) -> tuple[Array, Array | None]:
    """Return loss and rightness of each row, [n], if all are given the same answer.

    That is how often each class or label occurs, or the mean of the numbers; right is then the
    most frequent one. The units are those of `topwork.learn.judging.Judged`: labels that no image
    has, or each one, have no part in the loss of a head, and none in this.

    >>> losses, right = of_one_answer(Targets("classes", np.array([0, 0, 0, 1]), ("a", "b")))
    >>> losses.round(2).tolist(), right.tolist()
    ([0.29, 0.29, 0.29, 1.39], [1.0, 1.0, 1.0, 0.0])
    """
    values = targets.values
    if targets.kind == "classes":
        shares = np.bincount(values) / len(values)
        return -np.log(shares[values]), (values == shares.argmax()).astype(np.float64)
    means = values.mean(axis=0, dtype=np.float64)
    if targets.kind == "labels":
        varies = (means > 0) & (means < 1)
        said = np.where(values > 0, means, 1 - means)[:, varies]
        losses = -np.log(said).sum(axis=1) / max(1, varies.sum())
        return losses, ((values > 0) == (means > 0.5)).mean(axis=1)
    varies = values.var(axis=0, dtype=np.float64) > 0
    squares = np.square(values - means)[:, varies]
    return (squares / squares.mean(axis=0)).sum(axis=1) / max(1, varies.sum()), None
