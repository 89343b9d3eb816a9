"""What is to be learned about images: a class, labels, or numbers, as the head takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from topwork.data.image_set import ImageSet, numbers_of
from topwork.errors import DataError
from topwork.learn.folds import label_strata, number_strata

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Targets:
    """What is to be learned about n images.

    Attributes:
        kind: "classes", "labels" or "numbers".
        values: of classes int64 [n]; of labels float32 [n, outputs], 0 or 1; of numbers float32
            [n, outputs].
        names: the classes, labels or numbers. A sigmoid that tells two classes apart has one
            output, 1 for the second of its two names.
    """

    kind: str
    values: Array
    names: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """The number of scores that a head gives."""
        return len(self.names) if self.kind == "classes" else int(self.values.shape[1])

    def strata(self) -> Array:
        """Return the classes [n], int64, that folds should hold evenly."""
        if self.kind == "classes":
            return self.values
        return label_strata(self.values) if self.kind == "labels" else number_strata(self.values)

    def tensor(self) -> Tensor:
        """Return the values as a tensor that shares their memory."""
        return torch.from_numpy(self.values)

    def answered(self) -> Targets:
        """Return the targets as answers are given: two classes in place of one output.

        >>> Targets("labels", np.float32([[0], [1]]), ("ant", "bee")).answered().values.tolist()
        [0, 1]
        """
        if self.kind != "labels" or self.outputs > 1:
            return self
        return Targets("classes", self.values[:, 0].astype(np.int64), self.names)


def names_of(images: ImageSet, head: str) -> tuple[str, ...]:
    """Return what a head's answers are called: the classes, the labels or the numbers.

    The number that a folder or a single column gives has the column's name, or "number".
    """
    if head != "regression":
        return images.classes
    return images.number_names or ("number",)


def targets_of(
    images: ImageSet,
    indices: Sequence[int],
    head: str,
    *,
    names: Sequence[str] | None = None,
    outputs: int | None = None,
) -> Targets:
    """Return the targets of some images, for a kind of head.

    Softmax, SVM and ridge learn classes, a regression numbers. A sigmoid head learns labels: one
    output for each; for two classes that exclude each other one output, positive for the second.

    Args:
        images: labeled images.
        indices: which of them.
        head: a plan's kind of head.
        names: what a fitted model's answers are called, in order; by default those of the images.
        outputs: how many scores a fitted model gives; by default as many as the images ask for.

    Raises:
        DataError: for several labels, or numbers, that the head does not learn; a label that is no
            number; a label that is not among `names`.
    """
    own = tuple(names or names_of(images, head))
    if head == "regression":
        return _numbers(images, indices, own)
    if images.number_names:
        raise DataError(
            f"{images.location}: its labels are numbers; learn them with --head regression"
        )
    exclusive = len(own) == 2 and not images.multilabel if outputs is None else outputs == 1
    if images.multilabel and (head != "sigmoid" or exclusive):
        raise DataError(
            f"{images.location}: images have several labels, or none; learn them with"
            " --head sigmoid, or give one label column"
        )
    rows = _columns(images, indices, own)
    if head != "sigmoid":
        return Targets("classes", np.array([row[0] for row in rows], dtype=np.int64), own)
    table = np.zeros((len(rows), len(own)), dtype=np.float32)
    for row, columns in enumerate(rows):
        table[row, columns] = 1
    return Targets("labels", np.ascontiguousarray(table[:, 1:]) if exclusive else table, own)


def _columns(images: ImageSet, indices: Sequence[int], names: tuple[str, ...]) -> list[list[int]]:
    """Return for each image the places of its labels among the names."""
    place = {name: index for index, name in enumerate(names)}
    try:
        return [[place[label] for label in images.items[index].labels] for index in indices]
    except KeyError as error:
        raise DataError(
            f"{images.location}: the model does not know the class {error.args[0]!r}; it knows"
            f" {', '.join(names)}"
        ) from error


def _numbers(images: ImageSet, indices: Sequence[int], names: tuple[str, ...]) -> Targets:
    rows = [numbers_of(images, index) for index in indices]
    for row, index in zip(rows, indices, strict=True):
        if len(row) != len(names):
            raise DataError(
                f"{images.location}: {images.items[index].name} has {len(row)} labels, not"
                f" {len(names)} ({', '.join(names)}); give as many number columns"
            )
    values = np.array(rows, dtype=np.float32).reshape(len(rows), len(names))
    return Targets("numbers", values, names)
