"""Whether there are few or many images: by what twice as many would add."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from topwork.advice.learning_curve import LearningCurve

POINT = 0.01
"""Of accuracy: where twice the images are expected to add more than this, there are few."""

HALF_A_POINT = 0.005
"""Where they are expected to add less than this, there are many."""

AT_MOST = 0.02
"""Unless they may, for what can be told, add more than this."""


@dataclass(frozen=True)
class Size:
    """How much data there is, for what is to be learned from it.

    Attributes:
        verdict: "small", "large" or "cannot tell".
        images_per_class: all that can be learned from; of labels and numbers, all images.
        doubling: what twice the images are expected to add to the accuracy.
        low: end of its 95 % interval.
        high: likewise.
        why: in words.
    """

    verdict: str
    images_per_class: float
    doubling: float
    low: float
    high: float
    why: str

    def record(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "verdict": self.verdict,
            "images_per_class": round(self.images_per_class, 1),
            "doubling": {"value": self.doubling, "interval": [self.low, self.high]},
            "why": self.why,
        }


def size_of(curve: LearningCurve, images_per_class: float, unit: str = "images per class") -> Size:
    """Say whether there are few or many images.

    "small" where twice the images are expected to add more than a point of accuracy, and the
    forecast is told apart from nothing; "large" where they are expected to add less than half a
    point; else, and where the forecast's interval is wider than that allows to say, "cannot tell".

    Args:
        curve: of a probe at the best depth.
        images_per_class: how many there are.
        unit: what they are called, where there are no classes.
    """
    value, low, high = curve.doubling, curve.low, curve.high
    forecast = (
        f"twice as many are expected to add {points(value)} ({points(low)} to {points(high)})"
    )
    here = f"{images_per_class:.0f} {unit}"
    if len(curve.points) < 2:
        verdict, why = "cannot tell", f"{here} are too few to see what fewer would do"
    elif value > POINT and low > 0:
        verdict, why = "small", f"with {here}, {forecast}"
    elif value < HALF_A_POINT and high <= AT_MOST:
        verdict, why = "large", f"with {here}, {forecast}"
    else:
        verdict, why = "cannot tell", f"with {here}, {forecast}: neither much nor nothing"
    return Size(verdict, images_per_class, value, low, high, why)


def points(share: float) -> str:
    """Return a difference of accuracies in words.

    >>> points(0.0123), points(0.01)
    ('1.2 points', '1.0 point')
    """
    shown = f"{100 * share:.1f}"
    return f"{shown} point" if shown in ("1.0", "-1.0") else f"{shown} points"
