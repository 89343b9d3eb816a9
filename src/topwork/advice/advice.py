"""The advice: what was measured, what was compared, and which plan comes of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from topwork.advice.candidates import Candidate, candidates
from topwork.advice.comparison import paired_difference
from topwork.advice.distances import Distances
from topwork.advice.norm_distances import batch_norm_distances, sample_pixels
from topwork.advice.profile import Profile, images_per_class
from topwork.advice.race import Race, race, winner
from topwork.advice.similarity import Similarity, similarity_of
from topwork.advice.size import Size, size_of
from topwork.advice.source_card import card_distances, card_of
from topwork.advice.standing import Standing, errors_ahead, least_loss, mean_of
from topwork.advice.textbook import Textbook, textbook
from topwork.advice.trials import Task
from topwork.data.loading import Track, untracked
from topwork.errors import UsageError
from topwork.learn.metrics import NORMAL_QUANTILE, proportion
from topwork.plan import Plan

Array = np.ndarray

METRICS = {"classes": "accuracy", "labels": "label_accuracy", "numbers": "none"}
"""What candidates' values are, by kind of targets: of numbers there is the loss alone."""


@dataclass(frozen=True, eq=False)
class Advice:
    """A recommended plan with its evidence.

    Attributes:
        profile: accuracy by depth and by number of labels.
        similarity: of the target to the source.
        size: of the data, for what is to be learned.
        textbook: what the rule of thumb says.
        race: the candidates and how they did.
        recommended: one of them.
        seconds: that all this took.
    """

    profile: Profile
    similarity: Similarity
    size: Size
    textbook: Textbook
    race: Race
    recommended: Candidate
    seconds: float

    def record(self) -> dict[str, Any]:
        """Return plain data."""
        plan = self.recommended.plan.settle(self.profile.loaded.chain)
        profile = self.profile
        return {
            "backbone": profile.loaded.backbone.name,
            "recommended": plan.to_dict(),
            "recommended_name": self.recommended.name,
            "plan_in_words": plan.describe().splitlines(),
            "why": self.why(),
            "metric": METRICS[profile.targets.kind],
            "images": len(profile.targets.values),
            "folds": len(self.race.folds),
            "candidates": [self.row(standing) for standing in self.race.standings.values()],
            "compared_with": self.race.champion.candidate.name if self.race.champion else None,
            "textbook": self.textbook.record(),
            "profile": profile_record(profile, self.similarity, self.size),
            "time_budget": round(self.race.budget, 1),
            "seconds": round(self.seconds, 3),
        }

    def why(self) -> str:
        """Say why the plan is recommended, in a sentence."""
        name, known = self.recommended.name, self.race.standings.values()
        if self.recommended.tried:
            return self.why_trained(name)
        features = [s for s in known if not s.candidate.tried and s.state == "compared"]
        trials = sum(s.candidate.tried and s.state != "not tried" for s in known)
        least = least_loss(features)
        text = f"{name} has the least loss of {len(features)} plans on frozen features"
        if least.candidate.name != name:
            text = (
                f"{name} cannot be told apart from {least.candidate.name}, which has the least"
                " loss on frozen features, and is the safer of equals"
            )
        if trials:
            text += (
                f"; none of {trials} others that were tried is better beyond two standard errors"
            )
        return text

    def why_trained(self, name: str) -> str:
        """Say why a plan that was tried is recommended."""
        groups, going = self.race.task.groups, self.race
        own = going.standings[name]
        if going.champion is None:
            return (
                f"{name} is the cheapest that cannot be told apart from the best of what was tried"
            )
        furthest = max(going.survivors, key=lambda standing: mean_of(standing.gains()))
        text = (
            f"{name} is {errors_ahead(own, groups):.1f} standard errors of the loss better than"
            f" {going.champion.candidate.name}, the best of the frozen features"
        )
        if furthest is not own:
            text += f"; {furthest.candidate.name} is dearer, and cannot be told apart from it"
        return text

    def row(self, standing: Standing) -> dict[str, Any]:
        """Return what is known of a candidate, as plain data."""
        candidate = standing.candidate
        plan = candidate.plan.settle(self.profile.loaded.chain)
        return {
            "name": candidate.name,
            "plan": plan.to_dict(),
            "plan_in_words": plan.describe().splitlines(),
            "why": candidate.why,
            "corner": candidate.corner,
            "state": standing.state,
            "reason": standing.reason,
            **figures(standing),
            "difference": self.difference(standing),
            "seconds": round(standing.seconds, 2),
            "seconds_to_fit": round(standing.seconds_to_fit, 1),
            "recommended": candidate.name == self.recommended.name,
        }

    def difference(self, standing: Standing) -> dict[str, Any] | None:
        """Return how much more accurate a candidate is than the champion, on the same images."""
        champion = self.race.champion
        if champion is None or standing is champion:
            return None
        other = standing.champion_right if standing.candidate.tried else champion.right
        rows = np.flatnonzero(np.isfinite(standing.right) & np.isfinite(other))
        if not len(rows):
            return None
        groups = self.race.task.groups[rows]
        return paired_difference(standing.right[rows], other[rows], groups).record()


def figures(standing: Standing) -> dict[str, Any]:
    """Return accuracy with interval and n, and the loss, of a candidate; None where unknown."""
    right, losses = (x[np.isfinite(x)] for x in (standing.right, standing.losses))
    loss = float(losses.mean()) if len(losses) else None
    if not len(right):
        return {"value": None, "interval": None, "n": len(losses), "loss": loss}
    if np.isin(right, (0.0, 1.0)).all():
        return {**proportion(int(right.sum()), len(right)), "loss": loss}
    mean = float(right.mean())
    half = NORMAL_QUANTILE * float(right.std()) / len(right) ** 0.5
    interval = [max(0.0, mean - half), min(1.0, mean + half)]
    return {"value": mean, "interval": interval, "n": len(right), "loss": loss}


def profile_record(profile: Profile, similarity: Similarity, size: Size) -> dict[str, Any]:
    """Return a profile and what is read from it, as plain data."""
    return {**profile.record(), "similarity": similarity.record(), "size": size.record()}


def advise_on(
    task: Task,
    profile: Profile,
    base: Plan,
    *,
    only: Sequence[str] = (),
    time_budget: float | None = None,
    started: float | None = None,
    track: Track = untracked,
) -> Advice:
    """Compare candidate plans and recommend one.

    Args:
        task: what is to be learned.
        profile: of the same images.
        base: a plan that says backbone, kept depth, image size and channels.
        only: names of the candidates to compare; all by default.
        time_budget: in seconds, see `topwork.advice.race.race`.
        started: when the work began that the budget is for; by default now.
        track: shows progress.

    Raises:
        UsageError: if none of the candidates can be tried.
    """
    started = time.perf_counter() if started is None else started
    similarity, size = similarity_of(profile, distances_of(task, profile)), size_of_profile(profile)
    going = race(
        task,
        profile,
        candidates(profile, base, only),
        time_budget=time_budget,
        started=started,
        track=track,
    )
    best = winner(going)
    if best is None:
        reasons = "; ".join(f"{name}: {s.reason}" for name, s in going.standings.items())
        raise UsageError(f"no candidate was tried ({reasons or 'none is left'}); name another")
    return Advice(
        profile,
        similarity,
        size,
        textbook(size.verdict, similarity.verdict, best.candidate.name),
        going,
        best.candidate,
        time.perf_counter() - started,
    )


def size_of_profile(profile: Profile) -> Size:
    """Return how much data there is, for what is to be learned."""
    unit = "images per class" if profile.targets.kind == "classes" else "images"
    return size_of(profile.curve, images_per_class(profile.targets), unit)


def distances_of(task: Task, profile: Profile) -> Distances | None:
    """Return how far the target's statistics are from the source's, where these are known.

    That is from a card beside the weights, or else from the network's batch norms.
    """
    loaded, found = profile.loaded, distances_by_card(profile)
    if found or loaded.weights is None:
        return found
    preprocessing = loaded.backbone.preprocessing
    pixels = sample_pixels(task.images, task.indices, preprocessing)
    return batch_norm_distances(loaded.chain, pixels, preprocessing, loaded.plan.reused)


def distances_by_card(profile: Profile) -> Distances | None:
    """Return how far the target's codes are from the source's; None without a card that knows.

    The codes are there, so that this costs nothing.
    """
    loaded, codes = profile.loaded, profile.codes
    card = card_of(loaded)
    if card is None:
        return None
    names = [cut.name for cut in codes.cuts]
    pools = dict(zip(names, codes.pools, strict=True))
    return card_distances(card, loaded.chain, {name: codes.at(name) for name in names}, pools)
