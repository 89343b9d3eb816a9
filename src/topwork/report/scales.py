"""Scales of charts: where values lie along an axis, from 0 to 1000, and what stands beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SIDE = 1000.0
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
TINY = 1e-9  # a value below it counts as nothing
TICKS = 5  # spaces between ticks, about
MOST_NAMES = 24  # along an axis

Point = tuple[float, float, Sequence[float] | None]
"""x, y, and the ends of y's interval, if it has one."""


@dataclass(frozen=True)
class Tick:
    """A label and where it stands, 0 to 1000 from the left or from below."""

    place: float
    label: str


@dataclass(frozen=True)
class Scale:
    """From values to places along an axis.

    Attributes:
        low: the value at its beginning.
        high: the value at its end.
        ticks: what is written beside it.
        logarithmic: equal ratios are equally far apart.
    """

    low: float
    high: float
    ticks: tuple[Tick, ...] = ()
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Return where a value lies, from 0 to 1000; values outside lie at the ends.

        >>> Scale(0, 2).place(1.5), Scale(1, 100, logarithmic=True).place(10)
        (750.0, 500.0)
        """
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return round(SIDE * min(max((value - low) / (high - low), 0.0), 1.0), 1)


def top(scale: Scale, value: float) -> float:
    """Return how far from the top a value lies."""
    return round(SIDE - scale.place(value), 1)


def linear(
    values: Sequence[float],
    *,
    least: float = -math.inf,
    most: float = math.inf,
    factor: float = 1.0,
    unit: str = "",
) -> Scale:
    """Return a scale that begins and ends at round numbers and holds all values.

    Args:
        values: at least one.
        least: below it nothing lies.
        most: above it nothing lies.
        factor: that labels show values multiplied by.
        unit: that follows each label.

    >>> scale = linear([0.52, 0.97], most=1)
    >>> scale.low, scale.high, [tick.label for tick in scale.ticks]
    (0.5, 1.0, ['0.5', '0.6', '0.7', '0.8', '0.9', '1.0'])
    """
    low, high = min(values), max(values)
    if max(abs(low), abs(high)) < TINY:
        low, high = 0.0, min(1.0, most)
    size = max(abs(low), abs(high))
    span = high - low if high - low > 1e-6 * size else size
    power = 10.0 ** math.floor(math.log10(span / TICKS))
    step = power * next(size for size in STEPS if size * power >= span / TICKS * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    first, last = (first, last) if last > first else (first - 1, last + 1)
    low, high = max(first * step, least), min(last * step, most)
    marks = [round(number * step, 12) for number in range(first, last + 1)]
    bare = Scale(low, high)
    write = by_step(factor * step, factor * max(map(abs, marks)))
    ticks = [
        Tick(bare.place(mark), f"{write(factor * mark)}{unit}")
        for mark in marks
        if least <= mark <= most
    ]
    return Scale(low, high, tuple(ticks))


def by_step(step: float, size: float) -> Callable[[float], str]:
    """Return what writes the numbers of a scale, with as many digits as tell them apart.

    Args:
        step: from one number to the next.
        size: the largest number, without its sign.

    >>> write = by_step(0.25, 1.0)
    >>> write(0.5), write(0.75), by_step(500, 12_000)(12_000)
    ('0.50', '0.75', '12,000')
    >>> by_step(2000, 1_234_567_000)(1_234_567_000), by_step(1e-6, 3e-6)(3e-6)
    ('1.234567e+09', '3e-06')
    """
    digits = 0 if whole(step, -floor_log(step)) else 1  # steps are 1, 2, 2.5 or 5 of some power
    decimals = max(0, digits - floor_log(step))
    if step >= 1e-4 and size < 1e6:
        return f"{{:,.{decimals}f}}".format
    return f"{{:.{max(1, floor_log(size) - floor_log(step) + 1 + digits)}g}}".format


def floor_log(value: float) -> int:
    """Return the place of a positive number's first digit: 0 for units, -1 for tenths.

    >>> floor_log(250.0), floor_log(0.1)
    (2, -1)
    """
    return math.floor(math.log10(value) + 1e-9)


def whole(value: float, places: int) -> bool:
    """Say whether a number has no digits beyond some decimals, but for rounding.

    >>> whole(0.1 * 3, 1), whole(0.25, 1)
    (True, False)
    """
    scaled = value * 10.0**places
    return abs(scaled - round(scaled)) < 1e-6


def of_shares(points: Sequence[Point]) -> Scale:
    """Return a scale in percent for the heights of points and their intervals.

    >>> [tick.label for tick in of_shares([(0, 0.9, (0.8, 0.95)), (1, 1.0, None)]).ticks]
    ['80 %', '85 %', '90 %', '95 %', '100 %']
    """
    return linear(heights(points), least=0, most=1, factor=100, unit=" %")


def of_numbers(points: Sequence[Point]) -> Scale:
    """Return a scale for the heights of points and their intervals."""
    return linear(heights(points))


def heights(points: Sequence[Point]) -> list[float]:
    """Return all that a vertical scale has to hold."""
    return [height for _, value, ends in points for height in (value, *(ends or ()))]


def logarithmic(values: Sequence[float], words: Callable[[float], str]) -> Scale:
    """Return a logarithmic scale from the least to the greatest of some positive values.

    >>> [tick.label for tick in logarithmic([3, 90], "{:g}".format).ticks]
    ['5', '10', '20', '50']
    """
    low, high = min(values), max(values)
    if low == high:
        low, high = low / 2, high * 2
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = max(1, math.ceil((len(powers) - 1) / 6))
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    marks = [factor * 10.0**power for power in powers[::every] for factor in factors]
    bare = Scale(low, high, logarithmic=True)
    ticks = [
        Tick(bare.place(m), words(m)) for m in marks if low <= m * 1.0001 and m <= high * 1.0001
    ]
    return Scale(low, high, tuple(ticks), logarithmic=True)


def named(names: Sequence[str], always: Sequence[int] = ()) -> Scale:
    """Return a scale on which names stand side by side, at 0, 1, 2, ...

    Of very many only some are written, those at ``always`` among them.

    >>> [tick.place for tick in named(["a", "b"]).ticks]
    [250.0, 750.0]
    """
    bare = Scale(-0.5, len(names) - 0.5)
    every = math.ceil(len(names) / MOST_NAMES)
    shown = {*range(len(names) - 1, -1, -every)}
    crowded = {near for kept in always for near in range(kept - every + 1, kept + every)}
    shown = (shown - crowded | set(always)) if every > 1 else shown
    ticks = [Tick(bare.place(number), names[number]) for number in sorted(shown)]
    return Scale(bare.low, bare.high, tuple(ticks))


def power(value: float) -> str:
    """Write a number that may be very small.

    >>> power(0.01), power(1e-06), power(0.0002)
    ('0.01', '1e-6', '2e-4')
    """
    return f"{value:g}" if value >= 0.001 else f"{value:.0e}".replace("e-0", "e-")
