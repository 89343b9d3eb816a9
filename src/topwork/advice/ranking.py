"""Several backbones for one target: which of them suits best, and at what cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from topwork.advice.comparison import (
    ONE_STANDARD_ERROR,
    paired_difference,
    standard_errors_above,
)
from topwork.advice.profile import Profile, require_same_folds
from topwork.advice.shape import TOLD_APART
from topwork.advice.source_classifier import source_probabilities
from topwork.advice.transferability import h_score, leep, log_me, nce


@dataclass(frozen=True)
class Scores:
    """Transferability scores of a backbone's codes at the top; higher is better.

    Attributes:
        h_score: see `topwork.advice.transferability.h_score`; None where there are no classes.
        log_me: see `topwork.advice.transferability.log_me`.
        leep: see `topwork.advice.transferability.leep`; None where the source's own classifier
            is not at hand.
        nce: see `topwork.advice.transferability.nce`; likewise.
    """

    h_score: float | None
    log_me: float
    leep: float | None
    nce: float | None


def scores_of(profile: Profile) -> Scores:
    """Return the transferability scores at a profile's uppermost depth.

    Raises:
        WeightsError: if the backbone's weights file cannot be read any more.
    """
    top, targets = profile.top, profile.targets
    codes = profile.codes.at(top.cut.name)
    evidence = log_me(codes, targets.values)
    if targets.kind != "classes":
        return Scores(None, evidence, None, None)
    score = h_score(codes, targets.values)
    source = source_probabilities(profile.loaded, codes, top.pool)
    if source is None:
        return Scores(score, evidence, None, None)
    likeliest = source.argmax(axis=1)
    return Scores(score, evidence, leep(source, targets.values), nce(likeliest, targets.values))


@dataclass(frozen=True, eq=False)
class Entry:
    """A backbone that is to be ranked.

    Attributes:
        profile: of the target's images; the same ones, and the same folds, for all backbones.
        scores: of its codes at the top.
        milliseconds: that an image takes through its whole trunk on this machine.
    """

    profile: Profile
    scores: Scores
    milliseconds: float

    @property
    def name(self) -> str:
        """The backbone's."""
        return self.profile.loaded.backbone.name


@dataclass(frozen=True, eq=False)
class Ranked:
    """A backbone's place among others.

    Attributes:
        entry: the backbone.
        told_apart: whether its accuracy and the best backbone's, each at its best depth, differ by
            more than chance: the 95 % interval of the paired difference leaves out 0. Of numbers,
            whether its loss lies above by more than `topwork.advice.shape.TOLD_APART` standard
            errors.
        recommended: whether it is the one to take.
        why: in words.
    """

    entry: Entry
    told_apart: bool
    recommended: bool
    why: str

    def record(self) -> dict[str, Any]:
        """Return plain data."""
        best = self.entry.profile.best
        found = best.best.out_of_fold
        return {
            "backbone": self.entry.name,
            "value": found["value"],
            "interval": found["interval"],
            "loss": best.best.best.loss,
            "depth": best.cut.name,
            **asdict(self.entry.scores),
            "milliseconds": self.entry.milliseconds,
            "parameters": best.cut.parameters,
            "multiply_adds": best.cut.multiply_adds,
            "told_apart": self.told_apart,
            "recommended": self.recommended,
            "why": self.why,
        }


def rank_backbones(entries: Sequence[Entry]) -> tuple[Ranked, ...]:
    """Rank backbones by the loss of linear probes at their best depths; the best comes first.

    Recommended is the cheapest of those that are as good as the best: whose loss, on the same
    rows, lies no more than one standard error of the paired difference above its (see
    `topwork.advice.comparison.ONE_STANDARD_ERROR`). That is stricter than ``told_apart``: what is
    not told apart may still be too far behind to be taken for its cost. The cost is that of the
    layers up to the best depth in multiply-adds, which, unlike a measured time, is the same every
    time. Transferability scores have no say; they stand beside the probe.

    Args:
        entries: one or more.

    Raises:
        UsageError: if the profiles are not of the same images and folds.
    """
    require_same_folds([entry.profile for entry in entries])
    ordered = sorted(entries, key=loss_of)
    best = ordered[0]
    above = [errors_above(entry, best) for entry in ordered]
    equal = [entry for entry, own in zip(ordered, above, strict=True) if own <= ONE_STANDARD_ERROR]
    chosen = min(equal, key=cost_of)
    return tuple(
        Ranked(
            entry,
            differs(entry, own, best),
            entry is chosen,
            in_words(entry, own, best, equal, chosen),
        )
        for entry, own in zip(ordered, above, strict=True)
    )


def loss_of(entry: Entry) -> float:
    """Return the loss at a backbone's best depth."""
    return entry.profile.best.best.best.loss


def cost_of(entry: Entry) -> int:
    """Return the multiply-adds that an image takes up to a backbone's best depth."""
    return entry.profile.best.cut.multiply_adds


def errors_above(entry: Entry, best: Entry) -> float:
    """Return how many standard errors the loss of a backbone lies above that of the best."""
    if entry is best:
        return 0.0
    own, least = entry.profile.best.best, best.profile.best.best
    return standard_errors_above(own.losses, least.losses, best.profile.groups[least.rows])


def differs(entry: Entry, above: float, best: Entry) -> bool:
    """Say whether a backbone is told apart from the best: see `Ranked`."""
    own, least = entry.profile.best.best, best.profile.best.best
    if own.right is None or least.right is None:
        return above > TOLD_APART
    return paired_difference(own.right, least.right, best.profile.groups[least.rows]).told_apart


def in_words(entry: Entry, above: float, best: Entry, equal: Sequence[Entry], chosen: Entry) -> str:
    """Say in a sentence why a backbone has its place."""
    if entry not in equal:
        return f"its loss is {above:.1f} standard errors above that of {best.name}"
    what = "has the least loss" if entry is best else f"is as good as {best.name}"
    if len(equal) == 1:
        return f"{what}, and no other one lies within one standard error of it"
    if entry is chosen:
        return f"{what}, and is the cheapest of {len(equal)} within one standard error"
    times = cost_of(entry) / max(1, cost_of(chosen))
    return f"{what}, but takes {times:.1f} times the multiply-adds of {chosen.name}"
