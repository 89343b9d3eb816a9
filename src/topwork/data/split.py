"""Which images train, which choose, and which judge.

A split that the data brings is kept. Otherwise an item's side is a threshold on a hash of its
group, or else of its content: so it depends on nothing but the item itself, and adding files never
moves an old one. Every class is divided in the same proportion in expectation; where a small class
would miss a side, whole groups of it are moved, and a note says so. Images with several labels
count for each of them; those whose labels are numbers are one class.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from topwork.data.image_set import Item, name_a_few
from topwork.errors import DataError, UsageError

SIDES = ("train", "val", "test")

# Changing it moves every item of every split that was ever made.
_SALT = "topwork split 1"

_ALL = "all images"  # the one class of images whose labels are numbers


@dataclass(frozen=True)
class Split:
    """Indices of items by side, ascending.

    Attributes:
        train: for learning.
        val: for choosing, where the data brings such a part; else choosing is done inside train.
        test: for the one final look.
        origin: whether the data gave the sides or hashes did; or that there is one side only.
        notes: what had to be decided, one sentence each.
    """

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]
    origin: Literal["given", "hashed", "undivided"]
    notes: tuple[str, ...] = ()

    def side_of(self) -> dict[int, str]:
        """Return the side of each index that has one."""
        return {index: side for side in SIDES for index in getattr(self, side)}


def split_items(
    items: Sequence[Item],
    digests: Sequence[str | None],
    *,
    test_share: float = 0.2,
    numbers: bool = False,
) -> Split:
    """Return the sides that the data gives, or else those that hashes give.

    Args:
        items: what is to be divided.
        digests: the content hash of each item; items with None (unreadable) go to no side.
        test_share: the expected share of the test side where hashes decide, between 0 and 1.
        numbers: labels are numbers: no side can miss one, it is enough that none is empty.

    Raises:
        DataError: only some items have a side, or a side is given but none for training.
        UsageError: `test_share` is not between 0 and 1.
    """
    if not 0 < test_share < 1:
        raise UsageError(f"test_share is {test_share}; give a number between 0 and 1")
    usable = [index for index, digest in enumerate(digests) if digest is not None]
    given = {items[index].split for index in usable}
    if given <= {None}:
        return _hashed(items, digests, usable, test_share, numbers)
    if None in given:
        blank = [items[index].name for index in usable if items[index].split is None]
        raise DataError(
            f"{blank[0]}: no side is given for it and {len(blank) - 1} more, but for others there "
            f"is; fill in train, val or test for all, or for none"
        )
    if given == {"train"}:
        split = _hashed(items, digests, usable, test_share, numbers)
        note = "only train/ is given; its test part is held out by hash"
        return Split(split.train, (), split.test, "hashed", (note, *split.notes))
    return _given(items, usable)


def _given(items: Sequence[Item], usable: Sequence[int]) -> Split:
    sides: dict[str, list[int]] = {side: [] for side in SIDES}
    for index in usable:
        sides[str(items[index].split)].append(index)
    if not sides["train"]:
        raise DataError(
            f"no readable training images, but {len(usable)} of val or test; add a train side"
        )
    notes = []
    if not sides["test"]:
        sides["test"], sides["val"] = sides["val"], []
        notes.append("val/ is the held-out part; it is never used to choose")
    divided = _divided_groups(items, sides)
    if divided:
        notes.append(f"{name_a_few(divided)} on more than one given side (groups)")
    train, val, test = (tuple(sides[side]) for side in SIDES)
    return Split(train, val, test, "given", tuple(notes))


def _divided_groups(items: Sequence[Item], sides: Mapping[str, Sequence[int]]) -> list[str]:
    found: dict[str, set[str]] = defaultdict(set)
    for side, indices in sides.items():
        for index in indices:
            group = items[index].group
            if group is not None:
                found[group].add(side)
    return sorted(group for group, on in found.items() if len(on) > 1)


def _hashed(
    items: Sequence[Item],
    digests: Sequence[str | None],
    usable: Sequence[int],
    test_share: float,
    numbers: bool,
) -> Split:
    units: dict[str, list[int]] = defaultdict(list)
    for index in usable:
        group = items[index].group
        key = f"content {digests[index]}" if group is None else f"group {group}"
        units[key].append(index)
    position = {unit: _position(unit) for unit in units}
    order = sorted(units, key=lambda unit: (position[unit], unit))
    test = {unit for unit in order if position[unit] < test_share}
    classes = {index: (_ALL,) if numbers else items[index].labels for index in usable}
    labels = {unit: {label for index in units[unit] for label in classes[index]} for unit in order}
    notes = _repair(order, labels, test)
    counts = Counter(label for index in usable for label in classes[index])
    single = sorted(label for label, count in counts.items() if count == 1)
    if single:
        notes.append(f"{name_a_few(single)} with a single image: it stays in training")
    held_out = {index for unit in test for index in units[unit]}
    return Split(
        train=tuple(index for index in usable if index not in held_out),
        val=(),
        test=tuple(index for index in usable if index in held_out),
        origin="hashed",
        notes=tuple(notes),
    )


def _position(unit: str) -> float:
    """Return where in [0, 1) a unit lies, by the first 64 bits of a hash of its name."""
    digest = hashlib.sha256(f"{_SALT} {unit}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _repair(order: Sequence[str], labels: Mapping[str, Iterable[str]], test: set[str]) -> list[str]:
    """Move units so that no class misses a side, training first; return what was done.

    Args:
        order: all units, by ascending position.
        labels: the classes in each unit.
        test: the units held out; changed in place.
    """
    by_class: dict[str, list[str]] = defaultdict(list)
    for unit in order:
        for label in labels[unit]:
            by_class[label].append(unit)
    notes = []
    moved = []
    for label in sorted(by_class):
        if all(unit in test for unit in by_class[label]):
            test.remove(by_class[label][-1])
            moved.append(label)
    if moved:
        notes.append(f"{name_a_few(moved)} missed the training side: the highest hash was taken")
    in_training = Counter(label for unit in order if unit not in test for label in labels[unit])
    moved = []
    for label in sorted(by_class):
        if any(unit in test for unit in by_class[label]):
            continue
        for unit in by_class[label]:  # from the lowest; a unit may be all that another class has
            if all(in_training[other] > 1 for other in labels[unit]):
                test.add(unit)
                in_training.subtract(labels[unit])
                moved.append(label)
                break
    if moved:
        notes.append(f"{name_a_few(moved)} missed the test side: the lowest hash was taken")
    return notes
