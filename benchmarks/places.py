"""Where the benchmarks find their data and weights."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared"


def options(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder of data sets")
    parser.add_argument("--weights", type=Path, default=SHARED / "weights", help="folder of models")
    return parser


def require(*folders: Path) -> None:
    """Leave with one line if a folder is absent."""
    for folder in folders:
        if not folder.is_dir():
            sys.exit(f"{folder}: no such folder; say with --data and --weights where they are")
