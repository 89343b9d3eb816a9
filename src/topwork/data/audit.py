"""One look at every image before any training: what is broken, doubled, missing or lopsided."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from topwork.data import duplicates
from topwork.data.decode import quiet, thumbnail
from topwork.data.findings import TINY, Audit, Conflict, Twins
from topwork.data.image_set import ImageSet, name_a_few, numbers_of
from topwork.data.loading import Track, map_ahead, untracked
from topwork.data.split import SIDES, Split, split_items
from topwork.errors import DataError, ImageError

__all__ = ["Audit", "audit", "look_over"]

_BATCH = 32

Clusters = tuple[tuple[int, ...], ...]


def audit(
    images: ImageSet,
    *,
    strict: bool = False,
    numbers: bool = False,
    track: Track = untracked,
) -> Audit:
    """Look at every image once, divide them, and drop from training what the test side has too.

    Args:
        images: labeled images.
        strict: raise at the first kind of fault found, instead of listing and leaving out.
        numbers: the labels are numbers to be learned as such: no classes are counted or missed.
        track: shows the progress.

    Raises:
        DataError: no image can be read, a class lost its last training image, fewer than two
            classes are left, or with `strict` anything is unreadable, skipped, in conflict or on
            two sides; with `numbers` a label that is none.
    """
    looks = _look(images, track)
    unreadable = tuple(
        (item.name, looks.reasons[index])
        for index, item in enumerate(images.items)
        if index in looks.reasons
    )
    if len(unreadable) == len(images):
        first = f"; the first: {': '.join(unreadable[0])}" if unreadable else ""
        raise DataError(
            f"{images.location}: none of {len(images)} images can be read{first}; mend or replace"
            " them"
        )
    split = split_items(images.items, looks.digests, numbers=numbers)
    ranks = _ranks(split, len(images))
    exact = duplicates.exact_pairs(looks.digests, ranks)
    without_exact = ranks.copy()
    without_exact[[weaker for weaker, _ in exact]] = -1
    pairs = duplicates.near_pairs(looks.gray, looks.color, without_exact >= 0)
    near = duplicates.across_sides(pairs, ranks)
    kept = _without(split, {weaker for weaker, _ in exact + near})
    lookalikes, crowds = _lookalikes(images, looks.digests, pairs, kept, numbers=numbers)
    counts = {} if numbers else _counts(images, kept)
    training = [sides["train"] for sides in counts.values() if sides["train"]]
    result = Audit(
        location=images.location,
        digests=tuple(looks.digests),
        split=kept,
        skipped=images.skipped,
        unreadable=unreadable,
        exact_duplicates=_named(images, ranks, exact),
        near_duplicates=_named(images, ranks, near),
        dropped=_reasons(images, exact, "the same as")
        | _reasons(images, near, "nearly the same as"),
        lookalikes=lookalikes,
        crowds=crowds,
        copies=_copies(looks.digests, kept),
        conflicts=_conflicts(images, looks.digests, numbers),
        counts=counts,
        missing=_missing(counts, kept),
        tiny=tuple(label for label, sides in counts.items() if 0 < sides["train"] < TINY),
        imbalance=max(training) / min(training) if training else 1.0,
    )
    if strict and (faults := result.faults()):
        raise DataError(f"{images.location}: {faults[0]}; mend the data, or do without strict")
    if not numbers:
        _require_training(images, result)
    elif not kept.train:
        raise DataError(f"{images.location}: no training image is left; add images")
    return result


def look_over(images: ImageSet, *, track: Track = untracked) -> Audit:
    """Look at unlabeled images once: all that can be read may be learned from.

    Args:
        images: their labels are not looked at.
        track: shows the progress.

    Raises:
        DataError: no image can be read.
    """
    looks = _look(images, track)
    unreadable = tuple((images.items[row].name, why) for row, why in sorted(looks.reasons.items()))
    usable = tuple(row for row in range(len(images)) if row not in looks.reasons)
    if not usable:
        raise DataError(
            f"{images.location}: none of {len(images)} images can be read; mend or replace them"
        )
    split = Split(usable, (), (), "undivided")
    readable = _ranks(split, len(images)) == 0
    pairs = duplicates.near_pairs(looks.gray, looks.color, readable)
    lookalikes, crowds = _lookalikes(images, looks.digests, pairs, split, numbers=True)
    return Audit(
        location=images.location,
        digests=tuple(looks.digests),
        split=split,
        skipped=images.skipped,
        unreadable=unreadable,
        exact_duplicates=(),
        near_duplicates=(),
        dropped={},
        lookalikes=lookalikes,
        crowds=crowds,
        copies=_copies(looks.digests, split),
        conflicts=(),
        counts={},
        missing={},
        tiny=(),
        imbalance=1.0,
    )


@dataclass(frozen=True)
class _Looks:
    """What one pass over the encoded images gives."""

    digests: list[str | None]
    reasons: dict[int, str]
    gray: np.ndarray
    color: np.ndarray


def _look(images: ImageSet, track: Track) -> _Looks:
    count = len(images)
    looks = _Looks(
        digests=[None] * count,
        reasons={},
        gray=np.zeros((count, duplicates.SIDE, duplicates.SIDE), np.uint8),
        color=np.zeros((count, 3), np.uint8),
    )
    batches = [range(start, min(start + _BATCH, count)) for start in range(0, count, _BATCH)]
    with quiet():
        tracked = track(batches, "looking at the images")
        for batch, found in map_ahead(tracked, partial(_look_at_all, images)):
            for index, (digest, _, reason) in zip(batch, found, strict=True):
                looks.digests[index] = digest
                if reason:
                    looks.reasons[index] = reason
            miniatures = np.stack([miniature for _, miniature, _ in found])
            rows = slice(batch[0], batch[-1] + 1)
            looks.gray[rows], looks.color[rows] = duplicates.describe(miniatures)
    return looks


def _look_at_all(
    images: ImageSet, indices: Sequence[int]
) -> list[tuple[str | None, np.ndarray, str]]:
    return [_look_at(images, index) for index in indices]


def _look_at(images: ImageSet, index: int) -> tuple[str | None, np.ndarray, str]:
    """Return an image's digest, its miniature, and an empty reason; or None, black, and why."""
    try:
        data = images.read(index)
        miniature = thumbnail(data, images.items[index].name, duplicates.SIDE)
    except ImageError as error:
        return None, np.zeros((duplicates.SIDE, duplicates.SIDE, 3), np.uint8), error.reason
    return hashlib.sha256(data).hexdigest(), miniature, ""


def _ranks(split: Split, count: int) -> np.ndarray:
    """Return int8 [N]: 0 train, 1 val, 2 test, -1 none; what is ranked higher is kept longer."""
    ranks = np.full(count, -1, np.int8)
    for rank, side in enumerate(SIDES):
        ranks[list(getattr(split, side))] = rank
    return ranks


def _without(split: Split, dropped: set[int]) -> Split:
    train, val = (
        tuple(index for index in side if index not in dropped) for side in (split.train, split.val)
    )
    return replace(split, train=train, val=val)


def _named(
    images: ImageSet, ranks: np.ndarray, pairs: Iterable[tuple[int, int]]
) -> tuple[Twins, ...]:
    return tuple(
        Twins(
            images.items[weaker].name,
            SIDES[ranks[weaker]],
            images.items[stronger].name,
            SIDES[ranks[stronger]],
        )
        for weaker, stronger in pairs
    )


def _reasons(images: ImageSet, pairs: Iterable[tuple[int, int]], relation: str) -> dict[str, str]:
    return {
        images.items[weaker].name: f"{relation} {images.items[stronger].name}"
        for weaker, stronger in pairs
    }


def _lookalikes(
    images: ImageSet,
    digests: Sequence[str | None],
    pairs: np.ndarray,
    split: Split,
    *,
    numbers: bool,
) -> tuple[Clusters, Clusters]:
    """Return clusters of training images that are nearly, but not all exactly, the same.

    First those that can be kept together, then those with more than half of what trains a class,
    which is too much to set aside at once. Of an image whose group is given, that says it all.
    """
    members = _ranks(split, len(images)) == 0
    members &= [item.group is None for item in images.items]
    found = duplicates.clusters(pairs, members)

    def labels(indices: Iterable[int]) -> Counter[str]:
        if numbers:
            return Counter("" for _ in indices)
        return Counter(label for index in indices for label in images.items[index].labels)

    whole = labels(split.train)
    lookalikes: list[tuple[int, ...]] = []
    crowds: list[tuple[int, ...]] = []
    for cluster in found:
        if len({digests[index] for index in cluster}) > 1:
            crowd = any(2 * count > whole[label] for label, count in labels(cluster).items())
            (crowds if crowd else lookalikes).append(cluster)
    return tuple(lookalikes), tuple(crowds)


def _copies(digests: Sequence[str | None], split: Split) -> int:
    kept = Counter((side, digests[index]) for index, side in split.side_of().items())
    return sum(count - 1 for count in kept.values())


def _conflicts(
    images: ImageSet, digests: Sequence[str | None], numbers: bool
) -> tuple[Conflict, ...]:
    def meaning(index: int) -> Collection[str | float]:
        return numbers_of(images, index) if numbers else set(images.items[index].labels)

    first: dict[str, int] = {}
    conflicts = []
    for index, (item, digest) in enumerate(zip(images.items, digests, strict=True)):
        if digest is None:
            continue
        earlier = first.setdefault(digest, index)
        if meaning(earlier) != meaning(index):
            other = images.items[earlier]
            conflicts.append(Conflict(item.name, item.labels, other.name, other.labels))
    return tuple(conflicts)


def _counts(images: ImageSet, split: Split) -> dict[str, dict[str, int]]:
    counts = {label: dict.fromkeys(SIDES, 0) for label in images.classes}
    for index, side in split.side_of().items():
        for label in images.items[index].labels:
            counts[label][side] += 1
    return counts


def _missing(counts: Mapping[str, Mapping[str, int]], split: Split) -> dict[str, tuple[str, ...]]:
    missing = {
        side: tuple(label for label, sides in counts.items() if not sides[side])
        for side in SIDES
        if getattr(split, side)
    }
    return {side: labels for side, labels in missing.items() if labels}


def _require_training(images: ImageSet, result: Audit) -> None:
    given = result.split.origin == "given"
    expected = {
        label
        for item in images.items
        for label in item.labels
        if not given or item.split == "train"
    }
    lost = sorted(label for label in expected if not result.counts[label]["train"])
    if lost:
        raise DataError(
            f"{images.location}: no training image of {name_a_few(lost)} is left "
            f"({len(result.unreadable)} images unreadable, {len(result.dropped)} dropped as "
            f"duplicates); add images, or take the class out"
        )
    if len(expected) < 2:
        found = f"only {next(iter(expected))!r}" if expected else "no class"
        raise DataError(
            f"{images.location}: {found} has training images; give at least two classes"
        )
