"""Predictions as rows: plain data, printed one by one as they come."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def prediction(
    name: str, kind: str, labels: Sequence[str], answers: np.ndarray, top: int
) -> dict[str, Any]:
    """Return what a model says about one image as plain data.

    Args:
        name: the image's.
        kind: of the answers: "classes", "labels" or "numbers".
        labels: the names of the answers.
        answers: [labels].
        top: how many classes or labels to list, the most probable first; numbers are all listed.

    >>> import numpy as np
    >>> prediction("a.jpg", "classes", ["ant", "bee"], np.array([0.25, 0.75]), 1)
    {'path': 'a.jpg', 'top': [{'label': 'bee', 'probability': 0.75}]}
    >>> prediction("a.jpg", "numbers", ["age"], np.array([41.5]), 1)
    {'path': 'a.jpg', 'numbers': {'age': 41.5}}
    """
    if kind == "numbers":
        return {"path": name, "numbers": dict(zip(labels, answers.tolist(), strict=True))}
    best = [
        {"label": labels[number], "probability": round(float(answers[number]), 6)}
        for number in answers.argsort()[::-1][:top]
    ]
    return {"path": name, "top": best}


def columns(kind: str, labels: Sequence[str], top: int) -> list[str]:
    """Return the columns of a row as CSV, without the path and the error around them.

    >>> columns("classes", ["ant", "bee"], 2), columns("numbers", ["age"], 1)
    (['label', 'probability', 'label_2', 'probability_2'], ['age'])
    """
    if kind == "numbers":
        return list(labels)
    ranks = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    return [part for rank in ranks for part in (f"label{rank}", f"probability{rank}")]


def print_lines(rows: Iterable[dict[str, Any]]) -> None:
    """Print each row as a JSON object on a line of its own, as soon as it comes."""
    for row in rows:
        print(json.dumps(row), flush=True)


def print_csv(rows: Iterable[dict[str, Any]], names: Sequence[str]) -> None:
    """Print a header, then each row as soon as it comes: path, the columns named, error."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["path", *names, "error"])
    sys.stdout.flush()
    for row in rows:
        cells = [cell for best in row.get("top", ()) for cell in best.values()]
        cells += row.get("numbers", {}).values()
        cells += [""] * (len(names) - len(cells))
        writer.writerow([row["path"], *cells, row.get("error", "")])
        sys.stdout.flush()
