"""What a report says of the answers: confusion, calibration, classes, labels, numbers."""

from __future__ import annotations

from typing import Any

from topwork.report.charts import Chart, bars, diagonal, interval, scattered
from topwork.report.scales import Scale, linear
from topwork.report.terminal import decimal
from topwork.report.words import amount, counted, limits, listed, percent

MATRIX = 20  # classes that are shown as a matrix; of more, the pairs that are most confused
SHORT = 4  # letters of a name that need not be turned upright
PAIRS = 20
ABSENT = 8  # names listed that no test image has
ROWS = 100  # classes listed


def classes(test: dict[str, Any]) -> dict[str, Any]:
    """Return how the classes fared: confusion, recall and precision of each."""
    confusion, n = test["confusion"], test["n"]
    names, counts = confusion["classes"], confusion["counts"]
    rows = sorted(
        (row for row in test["per_class"] if row["recall"]["n"]),
        key=lambda row: row["recall"]["value"],
    )
    wrong = n - sum(counts[place][place] for place in range(len(names)))
    return {
        "wrong": wrong,
        "n": n,
        "matrix": matrix(names, counts) if len(names) <= MATRIX else None,
        "short": max(map(len, names)) <= SHORT,
        "pairs": pairs(names, counts)[:PAIRS],
        "rows": [
            {
                "name": row["class"],
                "n": f"{row['recall']['n']:,}",
                **{key: figure(row[key]) for key in ("recall", "precision")},
            }
            for row in rows[:ROWS]
        ],
        "more": max(0, len(rows) - ROWS),
        "absent": listed(test["absent"], ABSENT),
    }


def figure(row: dict[str, Any], metric: str = "recall") -> dict[str, Any]:
    """Return a share with its interval, in words and as a range."""
    return {
        "value": amount(metric, row["value"]),
        "interval": limits(metric, row["interval"]),
        "range": interval(row, Scale(0, 1)),
    }


def matrix(names: list[str], counts: list[list[int]]) -> list[dict[str, Any]]:
    """Return the rows of a confusion matrix, each cell with its share of the true class."""
    found = []
    for place, (name, row) in enumerate(zip(names, counts, strict=True)):
        members = sum(row)
        cells = [
            {
                "count": count,
                "shade": shade(count / max(members, 1), right=column == place),
                "right": column == place,
                "title": f"{counted(count, 'image')} of {name}, said {names[column]}",
            }
            for column, count in enumerate(row)
        ]
        found.append({"name": name, "cells": cells})
    return found


def shade(share: float, *, right: bool) -> float:
    """Return how dark a cell is, from 0 to 1; few mistakes are to be seen too.

    >>> shade(0.04, right=False), shade(0.04, right=True)
    (0.2, 0.04)
    """
    return round(share if right else share**0.5, 3)


def pairs(names: list[str], counts: list[list[int]]) -> list[dict[str, Any]]:
    """Return what was taken for what, the most frequent first."""
    found = [
        (count, count / sum(row), names[place], names[column])
        for place, row in enumerate(counts)
        for column, count in enumerate(row)
        if count and column != place
    ]
    found.sort(key=lambda pair: (-pair[0], -pair[1], pair[2:]))
    return [
        {"count": count, "share": percent(share, 0), "true": true, "said": said}
        for count, share, true, said in found
    ]


def labels(test: dict[str, Any]) -> dict[str, Any]:
    """Return how the labels fared, the lowest average precision first."""
    rows = sorted(
        (row for row in test["per_label"] if row["n"]),
        key=lambda row: row["average_precision"]["value"],
    )
    return {
        "rows": [
            {
                "name": row["label"],
                "n": f"{row['n']:,}",
                "average_precision": figure(row["average_precision"], "average_precision"),
                **{key: figure(row[key]) for key in ("recall", "precision")},
            }
            for row in rows[:ROWS]
        ],
        "more": max(0, len(rows) - ROWS),
        "absent": listed(test["absent"], ABSENT),
    }


def numbers(test: dict[str, Any], scattered: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how the numbers fared: errors of each, and true against predicted."""
    return {
        "rows": [
            {
                "name": row["name"],
                **{
                    key: {
                        "value": amount(key, row[key]["value"]),
                        "interval": limits(key, row[key]["interval"]),
                    }
                    for key in ("mean_absolute_error", "root_mean_squared_error", "r2")
                },
            }
            for row in test["per_number"]
        ],
        "scatters": [scatter(each) for each in scattered],
    }


def scatter(found: dict[str, Any]) -> dict[str, Any]:
    """Return the chart of true against predicted numbers, and a sentence on the errors."""
    ends = [value for pair in found["points"] for value in pair]
    scale = linear(ends)
    points = [(true, said, None) for true, said in found["points"]]

    def words(number: int) -> str:
        return "true {:g}, predicted {:g}".format(*points[number])

    return {
        "chart": Chart(
            title=f"{found['name']}: predicted by true",
            x_title="true",
            x_ticks=scale.ticks,
            y_ticks=scale.ticks,
            curves=(scattered("", "main", points, scale, scale, words),),
            diagonal=diagonal(scale, scale),
        ),
        "caption": (
            f"On average {decimal(abs(found['mean_error']))}"
            f" too {'high' if found['mean_error'] > 0 else 'low'}, with a deviation of"
            f" {decimal(found['deviation'])}; half of the errors are below"
            f" {decimal(found['median_absolute_error'])}, nine in ten below"
            f" {decimal(found['ninth_decile'])}."
        ),
    }


def calibrated(bins: list[dict[str, Any]], test: dict[str, Any]) -> dict[str, Any] | None:
    """Return the reliability diagram: how often what is said with a probability is so."""
    if not bins:
        return None
    of_labels = "per_label" in test
    total = sum(found["n"] for found in bins)
    x = linear([bins[0]["low"], 1.0], least=0, most=1, factor=100, unit=" %")
    y = linear([0.0, 1.0], least=0, most=1, factor=100, unit=" %")
    points = [(found["probability"], found["value"], found["interval"]) for found in bins]

    def words(number: int) -> str:
        found = bins[number]
        return (
            f"said with {percent(found['probability'])}: so for {percent(found['value'])}"
            f" of {found['n']:,}"
        )

    what = "a label" if of_labels else "the answer"
    noun = "labels" if of_labels else "images"
    return {
        "chart": Chart(
            title="How often it is so, by probability",
            x_title=f"probability of {what}",
            x_ticks=x.ticks,
            y_ticks=y.ticks,
            curves=(scattered("share that is so", "main", points, x, y, words),),
            diagonal=diagonal(x, y),
            bars=bars([(b["low"], b["high"], b["n"] / total) for b in bins], x, y),
        ),
        "caption": (
            f"Dots: of the {noun} with about this probability, the share for which {what}"
            f" is so, with its 95 % interval. On the dashed line the probabilities are"
            f" what they say. Bars: the share of all {total:,} {noun}."
        ),
        "error": test.get("calibration_error"),
    }
