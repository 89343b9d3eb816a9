"""Items and the set of them: what is there to learn from, before any pixel is decoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from topwork.errors import DataError, ImageError

# The names by which folders and split columns call the three sides.
SIDE_OF = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, slots=True)
class Item:
    """One image: what it is called and what the data says about it.

    Attributes:
        name: unique within its data: a posix path relative to the root, or ``x_train[17]``.
        labels: one class name; several or none where the data is multi-label; a number as text
            for each number column; ``()`` if unlabeled.
        split: ``train``, ``val`` or ``test`` as the data itself gives it.
        group: items of one group never go to different sides of a split.
    """

    name: str
    labels: tuple[str, ...] = ()
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images that can be read one by one, from any thread or process.

    Attributes:
        location: where they come from, as messages call it.
        items: in a fixed order.
        source: from an item's name to the encoded image.
        skipped: what was found but is no item, each with a short reason.
        multilabel: whether an item may have several labels or none.
        number_names: what its numbers are called, where the labels were asked for as numbers.
    """

    location: str
    items: tuple[Item, ...]
    source: Callable[[str], bytes]
    skipped: tuple[tuple[str, str], ...] = ()
    multilabel: bool = False
    number_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The distinct labels, sorted."""
        return tuple(sorted({label for item in self.items for label in item.labels}))

    def read(self, index: int) -> bytes:
        """Return the encoded image of one item.

        Raises:
            ImageError: it cannot be read (any more).
        """
        name = self.items[index].name
        try:
            return self.source(name)
        except FileNotFoundError as error:
            raise ImageError(name, "no such file") from error
        except PermissionError as error:
            raise ImageError(name, "no permission to read it") from error
        except MemoryError as error:
            raise ImageError(name, "not enough memory to read it") from error
        except OSError as error:
            raise ImageError(name, (error.strerror or "cannot be read").lower()) from error

    def subset(self, indices: Iterable[int]) -> ImageSet:
        """Return the same set with the items at these indices only, in this order."""
        return replace(self, items=tuple(self.items[index] for index in indices))


def require_classes(images: ImageSet, least_classes: int = 2, hint: str = "") -> ImageSet:
    """Return the images as they came if there is something to tell apart.

    Args:
        images: as they were found.
        least_classes: how many classes there must be: two to learn from, one to score a model.
        hint: what may help.

    Raises:
        DataError: there are no items, or too few classes.
    """
    if not images.items:
        first = f"; the first: {': '.join(images.skipped[0])}" if images.skipped else ""
        raise DataError(
            f"{images.location}: none of its {len(images.skipped)} entries can be used{first}"
        )
    if len(images.classes) < least_classes:
        found = f"only one class, {images.classes[0]!r}" if images.classes else "no labels"
        raise DataError(f"{images.location}: {found}; give at least two classes{hint}")
    return images


def numbers_of(images: ImageSet, index: int) -> tuple[float, ...]:
    """Return the labels of one item as numbers.

    Raises:
        DataError: one of them is no finite number.
    """
    item = images.items[index]
    numbers = []
    for label in item.labels:
        try:
            number = float(label)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise DataError(
                f"{images.location}: the label {label!r} of {item.name} is no number; correct it,"
                " or learn classes with another --head than regression"
            )
        numbers.append(number)
    return tuple(numbers)


def name_a_few(names: Sequence[str]) -> str:
    """Name the first five of many.

    >>> name_a_few(["a", "b", "c", "d", "e", "f", "g"])
    'a, b, c, d, e and 2 more'
    """
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
