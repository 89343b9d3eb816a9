"""Whether the target is like what the network was pretrained on.

Two signs are read, and neither overrules the other. The profile's shape: of data like the source
the uppermost features are as good as any, and better than those of the network's lower half; of
other data features from further down are better. And the distance of the target's statistics from
the source's, where those are known. The limits come from ``benchmarks/similarity.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from topwork.advice.distances import CANNOT_TELL, DIFFERENT, LIMITS, SIMILAR, Distances
from topwork.advice.profile import DepthResult, Profile
from topwork.advice.shape import Shape, shape_of
from topwork.learn.metrics import wilson

NEARLY_ALL = 0.98
"""Accuracy beyond which there is nothing left to gain, for what can be told."""


@dataclass(frozen=True)
class Similarity:
    """Whether the target is like the source.

    Attributes:
        verdict: "similar", "different" or "cannot tell".
        transfers: whether the pretrained layers know anything that the target needs, beyond what
            the lowest of them sees; False if they do not as far as can be told, None where the
            lowest features leave nothing to gain, or are not low, or groups are too few.
        why: in words, with the numbers.
        shape: of the profile.
        distances: from the source; None where its statistics are not known.
    """

    verdict: str
    transfers: bool | None
    why: str
    shape: Shape
    distances: Distances | None

    def record(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "verdict": self.verdict,
            "transfers": self.transfers,
            "why": self.why,
            "shape": self.shape.record(),
            "distances": self.distances.record() if self.distances else None,
        }


def similarity_of(profile: Profile, distances: Distances | None) -> Similarity:
    """Say whether the target is like the source, and whether anything transfers.

    Args:
        profile: of the target's images.
        distances: of their statistics from the source's; None where those are not known.

    Returns:
        "similar" or "different" where a sign says so and none says the opposite; else "cannot
        tell", as also where nothing that the network knows helps at all.
    """
    shape = shape_of(profile)
    transfers = transfers_of(shape, profile)
    sentences = [in_words(shape, profile, transfers)]
    signs = {shape.says}
    if distances is not None:
        sentences.append(distance_in_words(distances))
        signs.add(distances.says)
    signs.discard(CANNOT_TELL)
    if not shape.over_nothing.told_apart or transfers is False:
        signs.discard(SIMILAR)
    if len(signs) == 2:
        sentences.append("The two signs say the opposite of each other.")
    verdict = signs.pop() if len(signs) == 1 else CANNOT_TELL
    return Similarity(verdict, transfers, " ".join(sentences), shape, distances)


def transfers_of(shape: Shape, profile: Profile) -> bool | None:
    """Say whether the layers above the lowest know anything that the target needs."""
    if not shape.over_nothing.told_apart:
        return None if shape.over_nothing.open else False
    if shape.rise.told_apart:
        return True
    beyond_telling = shape.rise.open or nothing_left(profile.depths[0])
    return False if shape.begins_low and not beyond_telling else None


def nothing_left(depth: DepthResult) -> bool:
    """Say whether a depth may be right about nearly all there is, for what can be told."""
    right = depth.best.right
    return right is not None and wilson(round(float(right.sum())), len(right))[1] >= NEARLY_ALL


def in_words(shape: Shape, profile: Profile, transfers: bool | None) -> str:
    """Say what the shape shows, in a sentence or two."""
    if transfers is False:
        return nothing_in_words(shape, profile)
    best, top, lowest = profile.best, profile.top, profile.depths[0]
    if best is top:
        peak = f"The uppermost features ({shape.top}) are the best ones: {value_of(top)}"
    else:
        apart = "told apart" if shape.fall.told_apart else "which cannot be told apart"
        peak = (
            f"The best features lie at {shape.best}, after {shape.peak:.0%} of the multiply-adds:"
            f" {value_of(best)}, against {value_of(top)} at the top, {apart}"
        )
    sentence = f"{peak}; the lowest ({shape.lowest}) give {value_of(lowest)}."
    if transfers is None and (shape.over_nothing.open or shape.rise.open):
        count, images = len(np.unique(profile.groups)), len(profile.groups)
        what = f"{images} images" if count == images else f"images of {count} group(s)"
        return f"{sentence} What {what} show may be chance."
    if shape.says != CANNOT_TELL:
        return sentence
    if not shape.whole:
        return f"{sentence} As the layers above {shape.top} are not used, that is no sign."
    if not shape.upper_half.told_apart:
        return f"{sentence} {shape.middle}, in the lower half of the network, is as good already."
    return f"{sentence} That is no clear sign."


def nothing_in_words(shape: Shape, profile: Profile) -> str:
    """Say that nothing transfers."""
    start = f"Nothing transfers, as far as {len(profile.targets.values)} images can show"
    best, lowest = profile.best, profile.depths[0]
    if shape.over_nothing.told_apart:
        return (
            f"{start}: no depth is told apart from the lowest ({shape.lowest}), whose features are"
            f" edges and colors: {value_of(lowest)}, against {value_of(best)} at {shape.best}."
        )
    majority = profile.majority()
    same = "one answer for every image"
    if majority is not None:
        same = f"always saying the most frequent class, {majority:.1%} right"
    return f"{start}: {value_of(best)} at {shape.best} is not told apart from {same}."


def distance_in_words(distances: Distances) -> str:
    """Say how far the target's statistics are from the source's."""
    where = "at its batch norms" if distances.source == "batch norms" else "in its codes"
    near, far = LIMITS[distances.source]
    meaning = {
        SIMILAR: f"near (up to {near})",
        DIFFERENT: f"far (from {far} on)",
        CANNOT_TELL: f"neither near (up to {near}) nor far (from {far} on)",
    }[distances.says]
    return f"The images lie {distances.value:.2f} from the source's {where}, which is {meaning}."


def value_of(depth: DepthResult) -> str:
    """Return what a depth comes to, in words."""
    found = depth.best.out_of_fold
    if found["metric"] == "accuracy":
        return f"{found['value']:.1%} right"
    return f"a {found['metric'].replace('_', ' ')} of {found['value']:.3g}"
