"""Rows of benchmarks that take long: kept as they come, one JSON object a line, and not made again.

A line that was cut off by an interruption is no row, and what follows it begins on its own line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def rows_of(file: Path) -> list[Row]:
    """Return the rows that a file holds; none if there is no file."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def row_of(file: Path, key: Mapping[str, Any]) -> Row | None:
    """Return the first row with all entries of a key."""
    return next((row for row in rows_of(file) if key.items() <= row.items()), None)


def append(file: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a file, on a line of its own whatever stood at the end."""
    cut_off = file.exists() and not file.read_bytes().endswith(b"\n") and file.stat().st_size
    with file.open("a", encoding="utf-8") as opened:
        opened.write(("\n" if cut_off else "") + json.dumps(row) + "\n")
