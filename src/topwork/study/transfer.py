"""What a transfer study finds: scores over several seeds, compared pair by pair with scratch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

Way = Literal["pixels", "random", "reused", "fine-tuned", "scratch"]

NAMES: dict[Way, str] = {
    "pixels": "linear on pixels",
    "random": "random to {depth}, frozen",
    "reused": "reused to {depth}, frozen",
    "fine-tuned": "all reused, fine-tuned",
    "scratch": "from scratch",
}


@dataclass(frozen=True)
class Score:
    """One accuracy on the target's test part.

    Attributes:
        way: "pixels": linear classifier on pixels; "reused": on the frozen layers of the source
            network up to `depth`; "random": the same, of an untrained network; "fine-tuned": the
            source network with a new last layer, all of it trained; "scratch": the same network
            from random weights, all of it trained.
        depth: name of the cut point up to which layers are frozen: the input for the two ways
            that freeze none, and for pixels.
        labels_per_class: how many labels were learned from.
        accuracy: share of the test part that is right.
    """

    way: Way
    depth: str
    labels_per_class: int
    accuracy: float


@dataclass(frozen=True)
class Trial:
    """All that came of one seed.

    Attributes:
        seed: of random weights, orders and the draw of labels.
        source_accuracy: of the source network on its own task's test part.
        depths: names of the cut points, the input first.
        test_count: images in the target's test part.
        scores: one for each number of labels, way and depth.
        seconds: wall time.
    """

    seed: int
    source_accuracy: float
    depths: tuple[str, ...]
    test_count: int
    scores: tuple[Score, ...]
    seconds: float


@dataclass(frozen=True)
class Row:
    """One way over all seeds. Intervals are 95 % Student t over seeds, None for a single seed.

    They hold what another seed would change (weights, draw of labels), not another test part.

    Attributes:
        way: see `Score`.
        depth: see `Score`.
        labels_per_class: see `Score`.
        accuracies: one for each seed, in the order of the trials.
        mean: of the accuracies.
        interval: of the mean.
        gain: mean of the differences to scratch, seed by seed.
        gain_interval: of the gain.
    """

    way: Way
    depth: str
    labels_per_class: int
    accuracies: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None
    gain: float
    gain_interval: tuple[float, float] | None


@dataclass(frozen=True)
class Transfer:
    """The result of a study.

    Attributes:
        seeds: of the trials.
        source_accuracies: of the source networks, in the same order.
        depths: names of the cut points, the input first.
        labels_per_class: the numbers of labels, fewest first.
        test_count: images in the target's test part, the same for all.
        rows: by number of labels, then way, then depth.
        seconds: wall time of all trials together.
    """

    seeds: tuple[int, ...]
    source_accuracies: tuple[float, ...]
    depths: tuple[str, ...]
    labels_per_class: tuple[int, ...]
    test_count: int
    rows: tuple[Row, ...]
    seconds: float

    def select(self, way: Way, labels_per_class: int) -> list[Row]:
        """Return the rows of a way at one number of labels, lowest depth first."""
        wanted = (way, labels_per_class)
        return [row for row in self.rows if (row.way, row.labels_per_class) == wanted]

    def record(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return asdict(self)


def summarize(trials: Sequence[Trial]) -> Transfer:
    """Bring trials of the same study together, pairing each score with its seed's scratch score."""
    by_key: dict[tuple[Way, str, int], list[float]] = {}
    for trial in trials:
        for score in trial.scores:
            key = (score.way, score.depth, score.labels_per_class)
            by_key.setdefault(key, []).append(score.accuracy)
    first = trials[0]
    rows = []
    for (way, depth, count), accuracies in by_key.items():
        scratch = by_key["scratch", first.depths[0], count]
        gains = np.subtract(accuracies, scratch)
        mean, interval = mean_and_interval(accuracies)
        rows.append(
            Row(way, depth, count, tuple(accuracies), mean, interval, *mean_and_interval(gains))
        )
    return Transfer(
        seeds=tuple(trial.seed for trial in trials),
        source_accuracies=tuple(trial.source_accuracy for trial in trials),
        depths=first.depths,
        labels_per_class=tuple(sorted({row.labels_per_class for row in rows})),
        test_count=first.test_count,
        rows=tuple(rows),
        seconds=sum(trial.seconds for trial in trials),
    )


def mean_and_interval(
    values: Sequence[float] | np.ndarray,
) -> tuple[float, tuple[float, float] | None]:
    """Return the mean and its 95 % interval by Student's t; None for a single value.

    >>> mean, (low, high) = mean_and_interval([1.0, 2.0, 3.0])
    >>> mean, round(low, 3), round(high, 3)
    (2.0, -0.484, 4.484)
    """
    from scipy.stats import t

    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return mean, None
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return mean, (mean - half, mean + half)


def finding(result: Transfer) -> str:
    """Say in a sentence what all reused layers, frozen, gain over scratch.

    It reads the uppermost depth, which was fixed beforehand, and not the best one: the best of
    several would flatter.
    """
    counts = sorted({result.labels_per_class[0], result.labels_per_class[-1]})
    gains = [result.select("reused", count)[-1] for count in counts]
    parts = [
        f"With {gains[0].labels_per_class} labels per class, reused layers {_verdict(gains[0])}"
    ]
    parts += [f"with {row.labels_per_class} they {_verdict(row)}" for row in gains[1:]]
    return "; ".join(parts)


def _verdict(row: Row) -> str:
    points = f"{100 * abs(row.gain):.1f} points"
    low, high = row.gain_interval or (-math.inf, math.inf)
    if low > 0:
        return f"beat training from scratch by {points}"
    if high < 0:
        return f"fall {points} behind training from scratch"
    return "cannot be told from training from scratch"


def describe(result: Transfer) -> str:
    """Return the finding and two tables: a line for each way, a column for each number of labels.

    The first holds accuracies in percent, the second gains over scratch in points, each with half
    the width of its 95 % interval.
    """
    accuracy = f"Accuracy in % on {result.test_count} test images, by labels per class"
    accuracies = {row: _number(row.mean, row.interval, "") for row in result.rows}
    gain = "Gain over training from scratch in points, seed by seed"
    gains = {
        row: _number(row.gain, row.gain_interval, "+")
        for row in result.rows
        if row.way != "scratch"
    }
    footer = f"Means of {len(result.seeds)} seeds with 95 % intervals over the seeds."
    tables = [*_table(accuracy, accuracies), "", *_table(gain, gains)]
    return "\n".join([f"{finding(result)}.", "", *tables, "", footer])


def _table(title: str, cells: dict[Row, str]) -> list[str]:
    names = [f"  {NAMES[row.way].format(depth=row.depth):<28}" for row in cells]
    lines: dict[str, str] = {}
    for name, text in zip(names, cells.values(), strict=True):
        lines[name] = lines.get(name, name) + f"{text:>14}"
    counts = dict.fromkeys(row.labels_per_class for row in cells)
    return [title, " " * 30 + "".join(f"{count:>14}" for count in counts), *lines.values()]


def _number(share: float, interval: tuple[float, float] | None, sign: str) -> str:
    half = f" ± {50 * (interval[1] - interval[0]):4.1f}" if interval else ""
    return f"{100 * share:{sign}.1f}{half}"
