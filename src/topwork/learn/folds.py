"""Stratified folds for choosing inside the training part; groups stay whole.

Folds are stratified by classes. Several labels, or numbers, are first made into such, by
`label_strata` and `number_strata`.
"""

from __future__ import annotations

import numpy as np

from topwork.errors import DataError

Array = np.ndarray

BINS = 10


def label_strata(labels: Array) -> Array:
    """Return for rows with several labels a number for each set of them, int64 [n].

    Sets are numbered such that those with the rarest label come last, next to each other: dealt
    out in that order, even sets of one row spread the rare labels evenly.

    Args:
        labels: [n, labels], 0 or 1.

    >>> label_strata(np.array([[1, 0], [1, 1], [1, 0]])).tolist()
    [0, 1, 0]
    """
    rarest_first = np.argsort(labels.sum(axis=0), kind="stable")
    _, strata = np.unique(labels[:, rarest_first], axis=0, return_inverse=True)
    return strata.reshape(-1)


def number_strata(numbers: Array) -> Array:
    """Return for rows of numbers the tenth of all rows that each is in, int64 [n].

    Args:
        numbers: [n, numbers]; of several, the sum of their standardized values is taken.

    >>> number_strata(np.arange(20.0)[:, None]).tolist()[:5]
    [0, 0, 1, 1, 2]
    """
    deviations = numbers - numbers.mean(axis=0, dtype=np.float64)
    spread = deviations.std(axis=0)
    sums = (deviations / np.where(spread > 0, spread, 1.0)).sum(axis=1)
    ranks = np.empty(len(sums), dtype=np.int64)
    ranks[np.argsort(sums, kind="stable")] = np.arange(len(sums))
    return ranks * BINS // max(1, len(sums))


def stratified_folds(
    labels: Array, groups: Array | None = None, count: int = 5, seed: int = 0
) -> list[Array]:
    """Divide rows into folds and return the row numbers of each, for validation; sorted.

    Every row is in exactly one fold. Without groups each class is spread as evenly as its members
    allow: one with fewer members than folds is in as many folds as it has members, so only a class
    with a single member is ever missing from a training side. With groups the rows of one group
    share a fold, and groups are placed so that each fold holds about the same share of every class.

    Args:
        labels: [n] integers.
        groups: [n] anything that can be compared (a person, a scene, a set of near duplicates).
        count: folds wanted; there are fewer where there are fewer rows, or fewer groups.
        seed: of the shuffle.

    Raises:
        DataError: where fewer than two folds are possible.

    >>> folds = stratified_folds(np.array([0, 0, 0, 1, 1, 1]), count=3)
    >>> [len(fold) for fold in folds]
    [2, 2, 2]
    """
    labels = np.asarray(labels)
    generator = np.random.default_rng(seed)
    if groups is None:
        members, what = np.arange(len(labels)), "rows"
    else:
        groups = np.asarray(groups)
        if groups.shape != labels.shape:
            raise DataError(
                f"{len(groups)} groups for {len(labels)} labels; give every row its group"
            )
        members, what = np.unique(groups, return_inverse=True)[1], "groups"
    available = len(np.unique(members))
    count = min(count, available)
    if count < 2:
        raise DataError(
            f"{available} {what} cannot be divided into folds; two are needed at the least"
        )
    if available == len(labels):
        fold_of = _deal(labels, count, generator)
    else:
        fold_of = _place(labels, members, count, generator)[members]
    return [np.flatnonzero(fold_of == fold) for fold in range(count)]


def _deal(labels: Array, count: int, generator: np.random.Generator) -> Array:
    """Deal the rows out like cards, class after class, shuffled within each."""
    shuffled = generator.permutation(len(labels))
    dealt = shuffled[np.argsort(labels[shuffled], kind="stable")]
    fold_of = np.empty(len(labels), dtype=np.int64)
    fold_of[dealt] = np.arange(len(labels)) % count
    return fold_of


def _place(labels: Array, members: Array, count: int, generator: np.random.Generator) -> Array:
    """Return the fold of each group: largest first, each where it finds least of its classes."""
    classes, own = np.unique(labels, return_inverse=True)
    shares = np.zeros((members.max() + 1, len(classes)))
    np.add.at(shares, (members, own), 1.0)
    shares /= shares.sum(axis=0)
    shuffled = generator.permutation(len(shares))
    largest_first = shuffled[np.argsort(-shares[shuffled].sum(axis=1), kind="stable")]
    held = np.zeros((count, len(classes)))
    fold_of = np.empty(len(shares), dtype=np.int64)
    for group in largest_first:
        crowding = (held @ shares[group]).round(12)
        fold = np.lexsort((held.sum(axis=1), crowding))[0]
        fold_of[group] = fold
        held[fold] += shares[group]
    return fold_of
