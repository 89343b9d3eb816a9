"""Which photos to learn from are in a set that topwork is measured on? Print pairs to look at.

Miniatures of 24x24 gray pixels are correlated: of the whole photo and of its middle square on one
side, of these and of six further crops on the other. What is the same photo lies above 0.95; so do
some with few details, such as steel and skies, which are not. What was found is what
`make.LEFT_OUT` is for.

    python recipes/rootstock/overlap.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from make import SHARED, unpack
from PIL import Image

SETS = ("hymenoptera", "flowers12", "pacs", "sign_digits", "neu_steel", "wbc")
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif")
SIDE = 24  # pixels
ALIKE = 0.95  # correlation


def main() -> None:
    """Print each pair of alike photos, the most alike first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder of data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/rootstock"), help="to work in")
    args = parser.parse_args()
    learned = images_in(unpack(args.data, args.out / "photos"))
    judged = [path for name in SETS for path in images_in(args.data / name)]
    with ThreadPoolExecutor() as pool:
        ours = np.stack(list(pool.map(lambda path: miniatures(path)[:2], learned)))
        theirs = np.stack(list(pool.map(miniatures, judged)))
    alike = np.zeros((len(judged), len(learned)), np.float32)
    for crop in range(theirs.shape[1]):
        for whole in range(ours.shape[1]):
            np.maximum(alike, theirs[:, crop] @ ours[:, whole].T, out=alike)
    for row, column in sorted(np.argwhere(alike >= ALIKE), key=lambda pair: -alike[tuple(pair)]):
        print(f"{alike[row, column]:.3f} {judged[row]} {learned[column]}")


def images_in(folder: Path) -> list[Path]:
    """Return the images below a folder."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def miniatures(path: Path) -> np.ndarray:
    """Return crops of a photo as rows of mean 0 and length 1, float32 [8, SIDE * SIDE]."""
    with Image.open(path) as opened:
        gray = opened.convert("L")
    small = [
        np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box, reducing_gap=2))
        for box in boxes(gray.size)
    ]
    rows = np.stack(small).reshape(len(small), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def boxes(size: Sequence[int]) -> Iterator[tuple[float, float, float, float]]:
    """Yield the whole, the middle square, smaller ones of it, and the squares in the corners."""
    width, height = size
    yield 0, 0, width, height
    short = min(size)
    for side in (short, 0.85 * short, 0.7 * short):
        left, upper = (width - side) / 2, (height - side) / 2
        yield left, upper, left + side, upper + side
    for left in (0, width - short):
        for upper in (0, height - short):
            yield left, upper, left + short, upper + short


if __name__ == "__main__":
    main()
