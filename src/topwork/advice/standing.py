"""What is known of candidates, and which of them is ahead: losses on the same rows, paired."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from topwork.advice.candidates import Candidate
from topwork.advice.comparison import ONE_STANDARD_ERROR, standard_errors_above
from topwork.learn.standard_error import (
    degrees_of_freedom,
    on_the_normal_scale,
    standard_error,
)

Array = np.ndarray


@dataclass(eq=False)
class Standing:
    """What is known of a candidate.

    Attributes:
        candidate: who.
        losses: [n] of each row at the candidate's temperature; NaN where it was not judged. Of
            candidates that race these are the rows of the last round that they took part in.
        right: [n] how right each row is; NaN likewise; all NaN for numbers.
        champion_losses: [n] those of the champion on the same rows, having learned from the same
            rows; NaN for candidates that do not race.
        champion_right: [n] likewise.
        state: "not tried", "dropped" or "compared".
        reason: why it is in that state.
        seconds: that it took so far.
        seconds_to_fit: that fitting it to all images is expected to take.
        strength: of the head's penalty, where it is judged by the profile's codes.
    """

    candidate: Candidate
    losses: Array
    right: Array
    champion_losses: Array
    champion_right: Array
    state: str = "not tried"
    reason: str = ""
    seconds: float = 0.0
    seconds_to_fit: float = 0.0
    strength: float = 0.0

    def gains(self) -> Array:
        """Return by how much the champion's losses lie above its own, [n]; NaN where unknown."""
        return self.champion_losses - self.losses


def standing_of(candidate: Candidate, n: int) -> Standing:
    """Return a standing that knows nothing yet.

    Args:
        candidate: who.
        n: rows of the task.
    """
    nothing = [np.full(n, np.nan) for _ in range(4)]
    return Standing(candidate, nothing[0], nothing[1], nothing[2], nothing[3])


def noted(n: int, rows: Array, values: Array | None) -> Array:
    """Return values at some of n rows, NaN elsewhere."""
    found = np.full(n, np.nan)
    if values is not None:
        found[rows] = values
    return found


def errors_ahead(standing: Standing, groups: Array) -> float:
    """Return how far a candidate is ahead of the champion, in standard errors of the loss."""
    return standard_errors_above(standing.champion_losses, standing.losses, groups)


def errors_behind(standing: Standing, best: Standing, groups: Array) -> float:
    """Return how far one candidate is behind another, in standard errors of the loss.

    On the same rows, if both were judged by them; else by what each gains over the champion.
    """
    if (np.isfinite(standing.losses) & np.isfinite(best.losses)).any():
        return standard_errors_above(standing.losses, best.losses, groups)
    gains, others = standing.gains(), best.gains()
    known = [np.isfinite(gains), np.isfinite(others)]
    error = math.hypot(
        *(standard_error(g[k], groups[k]) for g, k in zip((gains, others), known, strict=True))
    )
    if error <= 0:
        return 0.0
    freedom = min(degrees_of_freedom(groups[rows]) for rows in known)  # of who saw fewer groups
    return on_the_normal_scale((mean_of(others) - mean_of(gains)) / error, freedom)


def cheapest_of_the_best(standings: Sequence[Standing], groups: Array) -> Standing:
    """Return the cheapest whose losses lie within a standard error of the least.

    All must have been judged by some of the same rows. Of equal cost the first is taken.
    """
    best = least_loss(standings)
    return min(
        (
            standing
            for standing in standings
            if standard_errors_above(standing.losses, best.losses, groups) <= ONE_STANDARD_ERROR
        ),
        key=lambda standing: standing.candidate.cost,
    )


def least_loss(standings: Sequence[Standing]) -> Standing:
    """Return who has the least loss on the rows that all were judged by, or else on its own."""
    common = np.all([np.isfinite(standing.losses) for standing in standings], axis=0)
    rows = common if common.any() else slice(None)
    return min(standings, key=lambda standing: mean_of(standing.losses[rows]))


def mean_of(values: Array) -> float:
    """Return the mean of the values that are known; NaN if none is.

    >>> mean_of(np.array([1.0, np.nan, 2.0]))
    1.5
    """
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan
