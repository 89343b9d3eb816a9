"""How well scores rank positive rows above negative ones, on many resamples at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Ranking:
    """Rows by falling score; those of equal score form a group.

    Attributes:
        order: [n] row numbers.
        positive: [n] 0 or 1, in that order.
        ends: [g] the last place of each group.
    """

    order: Array
    positive: Array
    ends: Array

    def average_precision(self, times: Array) -> Array:
        """Return the mean over the positive rows of the precision down to each: [resamples].

        That of a group is the precision at its end, as in scikit-learn; no interpolation. NaN
        where no positive row was drawn.

        Args:
            times: [resamples, n] how often each row counts.
        """
        hits, all_rows = self._counts(times)
        precision = np.divide(hits, all_rows, out=np.zeros_like(hits), where=all_rows > 0)
        gained = np.diff(hits, axis=1, prepend=0.0)
        return _ratio((gained * precision).sum(axis=1), hits[:, -1])

    def area(self, times: Array) -> Array:
        """Return the area under the ROC curve: [resamples], NaN where one kind was not drawn.

        It is the share of pairs of a positive and a negative row in which the positive one has
        the higher score; pairs of one group count half (Hanley & McNeil 1982).
        """
        hits, all_rows = self._counts(times)
        misses = all_rows - hits
        above = hits - np.diff(hits, axis=1, prepend=0.0) / 2
        pairs = (np.diff(misses, axis=1, prepend=0.0) * above).sum(axis=1)
        return _ratio(pairs, hits[:, -1] * misses[:, -1])

    def _counts(self, times: Array) -> tuple[Array, Array]:
        """Return how many positive rows, and rows, lie in each group and above: [resamples, g]."""
        ordered = times[:, self.order].astype(np.float64)
        hits = np.cumsum(ordered * self.positive, axis=1)[:, self.ends]
        return hits, np.cumsum(ordered, axis=1)[:, self.ends]


def rank(scores: Array, positive: Array) -> Ranking:
    """Rank rows by their scores [n]; `positive` [n] says which should come first.

    >>> ranking = rank(np.array([0.9, 0.4, 0.4, 0.1]), np.array([1, 1, 0, 0]))
    >>> once = np.ones((1, 4))
    >>> ranking.average_precision(once).round(3).tolist(), ranking.area(once).tolist()
    ([0.833], [0.875])
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    return Ranking(order, positive[order].astype(np.float64), ends)


def _ratio(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
