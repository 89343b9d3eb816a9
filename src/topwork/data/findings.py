"""What an audit found, as a value, and how it is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from topwork.data.image_set import name_a_few
from topwork.data.split import SIDES, Split

# A class with fewer training images than this is worth a word.
TINY = 10

# So many times as many training images in the largest class as in the smallest, likewise.
LOPSIDED = 3.0


@dataclass(frozen=True, slots=True)
class Twins:
    """An image that was dropped because a side that judges it has the same one."""

    name: str
    side: str
    twin: str
    twin_side: str


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two files with the same bytes and different labels."""

    name: str
    labels: tuple[str, ...]
    twin: str
    twin_labels: tuple[str, ...]


@dataclass(frozen=True)
class Audit:
    """What was found, as plain data.

    Attributes:
        location: where the images come from.
        digests: SHA-256 of each item's bytes in hex, None where it is unreadable.
        split: the sides, without what is unreadable or was dropped.
        skipped: what was found but is no item, with the reason.
        unreadable: items that cannot be read or decoded, with the reason.
        exact_duplicates: same bytes on two sides.
        near_duplicates: nearly the same picture on two sides.
        dropped: the items those cost, with the reason; never one of the test side.
        lookalikes: indices of training images that are nearly the same picture, cluster by cluster;
            what is chosen inside the training part must not learn from one and be judged by the
            next.
        crowds: such clusters with more than half of a class, which cannot be kept together.
        copies: how many items repeat the bytes of another one on their own side.
        conflicts: same bytes, different labels.
        counts: images per class and side; empty where labels are numbers.
        missing: classes that a side lacks, for each side that lacks some.
        tiny: classes with fewer than 10 training images.
        imbalance: training images of the largest class over those of the smallest.
    """

    location: str
    digests: tuple[str | None, ...]
    split: Split
    skipped: tuple[tuple[str, str], ...]
    unreadable: tuple[tuple[str, str], ...]
    exact_duplicates: tuple[Twins, ...]
    near_duplicates: tuple[Twins, ...]
    dropped: dict[str, str]
    lookalikes: tuple[tuple[int, ...], ...]
    crowds: tuple[tuple[int, ...], ...]
    copies: int
    conflicts: tuple[Conflict, ...]
    counts: dict[str, dict[str, int]]
    missing: dict[str, tuple[str, ...]]
    tiny: tuple[str, ...]
    imbalance: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: all but the digests and the sides of single images."""
        return {
            "location": self.location,
            "split": {
                "origin": self.split.origin,
                "notes": list(self.split.notes),
                "sizes": {side: len(getattr(self.split, side)) for side in SIDES},
            },
            "skipped": [list(entry) for entry in self.skipped],
            "unreadable": [list(entry) for entry in self.unreadable],
            "exact_duplicates": [asdict(twins) for twins in self.exact_duplicates],
            "near_duplicates": [asdict(twins) for twins in self.near_duplicates],
            "dropped": dict(self.dropped),
            "lookalikes": [len(cluster) for cluster in self.lookalikes],
            "crowds": [len(cluster) for cluster in self.crowds],
            "copies": self.copies,
            "conflicts": [
                {**asdict(each), "labels": list(each.labels), "twin_labels": list(each.twin_labels)}
                for each in self.conflicts
            ],
            "counts": {label: dict(sides) for label, sides in self.counts.items()},
            "missing": {side: list(labels) for side, labels in self.missing.items()},
            "tiny": list(self.tiny),
            "imbalance": self.imbalance,
        }

    def lines(self) -> list[str]:
        """Return the findings in plain English, one per line; the first is a summary."""
        classes = "class" if len(self.tiny) == 1 else "classes"
        found = [
            self._summary(),
            *self.split.notes,
            listed(self.unreadable, "unreadable, left out", ": ".join),
            listed(self.skipped, "skipped", ": ".join),
            listed(self.exact_duplicates, "exact duplicates across sides, dropped", _twins),
            listed(self.near_duplicates, "near duplicates across sides, dropped", _twins),
            f"exact copies inside a side, kept: {self.copies}" if self.copies else "",
            _alike(self.lookalikes, "kept together where training is divided to choose"),
            _alike(self.crowds, "more than half of a class, so they cannot be kept together"),
            listed(self.conflicts, "times the same image under different labels", _conflict),
            *(f"{side} lacks {name_a_few(labels)}" for side, labels in self.missing.items()),
            listed(self.tiny, f"{classes} with fewer than {TINY} training images", str),
        ]
        if self.imbalance >= LOPSIDED:
            found.append(
                f"the largest class has {self.imbalance:.1f} times the training images of the "
                f"smallest"
            )
        return [line for line in found if line]

    def _summary(self) -> str:
        sizes = {side: len(getattr(self.split, side)) for side in SIDES}
        images = f"{sum(sizes.values())} images"
        if self.split.origin == "undivided":
            return f"{images}, without labels"
        parts = ", ".join(f"{size} {side}" for side, size in sizes.items() if size)
        origin = "as given" if self.split.origin == "given" else "split by hash"
        labels = f"{len(self.counts)} classes" if self.counts else "labeled with numbers"
        return f"{images}, {labels}: {parts} ({origin})"

    def faults(self) -> list[str]:
        """Return what strictness does not bear, one kind per line."""
        kinds = (
            listed(self.unreadable, "unreadable", ": ".join),
            listed(self.skipped, "skipped", ": ".join),
            listed(self.conflicts, "times the same image under different labels", _conflict),
            listed(self.exact_duplicates, "exact duplicates across sides", _twins),
            listed(self.near_duplicates, "near duplicates across sides", _twins),
        )
        return [kind for kind in kinds if kind]


def listed(entries: Sequence[Any], what: str, say: Callable[[Any], str]) -> str:
    """Return how many findings there are and the first five of them, or nothing of none.

    >>> listed([("a.jpg", "cut off"), ("b.jpg", "empty")], "unreadable", ": ".join)
    '2 unreadable: a.jpg: cut off; b.jpg: empty'
    """
    if not entries:
        return ""
    shown = "; ".join(say(entry) for entry in entries[:5])
    more = f"; and {len(entries) - 5} more" if len(entries) > 5 else ""
    return f"{len(entries)} {what}: {shown}{more}"


def _alike(clusters: Sequence[tuple[int, ...]], what: str) -> str:
    """Return "nearly the same inside train: 4 images in 2 groups, ..." or an empty string."""
    if not clusters:
        return ""
    count, groups = sum(map(len, clusters)), len(clusters)
    return f"nearly the same inside train: {count} images in {groups} groups, {what}"


def _twins(twins: Twins) -> str:
    return f"{twins.name} ({twins.side}) = {twins.twin} ({twins.twin_side})"


def _conflict(conflict: Conflict) -> str:
    labels, twin_labels = ("+".join(each) for each in (conflict.labels, conflict.twin_labels))
    return f"{conflict.name} ({labels}) = {conflict.twin} ({twin_labels})"
