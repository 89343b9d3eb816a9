"""Data sets of ../shared as manifests with a fixed split, for the benchmarks.

A manifest lists absolute paths with label, split and group. What the data divides stays divided;
else a side depends on the seed and the file's name (of hand signs: the signer's), so that a cap
on one side moves nothing on the other.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import accumulate
from pathlib import Path

from places import options, require

IMAGES = (".jpg", ".jpeg", ".png", ".gif")
FEWEST = 8  # images of a class of blood cells, below which it is left out


@dataclass(frozen=True)
class Row:
    """One image: its path below the folder of data sets, its classes, side and group."""

    path: str
    labels: tuple[str, ...]
    split: str = ""
    group: str = ""


def hymenoptera(data: Path, seed: int) -> list[Row]:
    """Ants and bees, divided by the data; ``seed`` decides nothing."""
    return given(data, {"hymenoptera/train": "train", "hymenoptera/val": "test"})


def flowers12(data: Path, seed: int) -> list[Row]:
    """Twelve flowers, divided by the data; ``seed`` decides nothing."""
    return given(data, {"flowers12/train": "train", "flowers12/test": "test"})


def pacs(data: Path, seed: int) -> list[Row]:
    """Photos and paintings to learn from, sketches to be judged by; the group is the style."""
    sides = {"pacs/photo": "train", "pacs/art_painting": "train", "pacs/sketch": "test"}
    return [replace(row, group=row.path.split("/")[1]) for row in given(data, sides)]


def pacs_photo(data: Path, seed: int) -> list[Row]:
    """Seven classes, of pacs the photos alone; two fifths of each are for testing."""
    return divided(given(data, {"pacs/photo": ""}), seed, 0.4)


def neu_steel(data: Path, seed: int) -> list[Row]:
    """Six defects of steel; 10 of 150 images per class are for training."""
    return divided(given(data, {"neu_steel": ""}), seed, 14 / 15)


def sign_digits(data: Path, seed: int) -> list[Row]:
    """Ten hand signs; two fifths of the signers are for testing, so nobody is on both sides.

    Each signer showed 0 to 9 in turn, so a 0 begins the next one's photos.
    """
    rows = sorted(given(data, {"sign_digits": ""}), key=lambda row: Path(row.path).stem)
    signers = accumulate(int(row.labels == ("0",)) for row in rows)
    grouped = [replace(row, group=f"{n:03}") for row, n in zip(rows, signers, strict=True)]
    return divided(grouped, seed, 0.4)


def wbc(data: Path, seed: int) -> list[Row]:
    """White blood cells: photos with one kind of cell, two fifths of each kind for testing."""
    single = [row for row in blood_cells(data) if len(row.labels) == 1]
    return divided(without_rare(single), seed, 0.4)


def wbc_multilabel(data: Path, seed: int) -> list[Row]:
    """White blood cells, the photos with several kinds of them included."""
    return divided(without_rare(blood_cells(data)), seed, 0.4)


SETS: Mapping[str, Callable[[Path, int], list[Row]]] = {
    "hymenoptera": hymenoptera,
    "flowers12": flowers12,
    "neu_steel": neu_steel,
    "sign_digits": sign_digits,
    "wbc": wbc,
    "wbc_multilabel": wbc_multilabel,
    "pacs": pacs,
    "pacs_photo": pacs_photo,
}


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("out", type=Path, help="folder for the manifests; made where absent")
    parser.add_argument("--only", choices=SETS, action="append", help="this set (may be repeated)")
    parser.add_argument("--seed", type=int, default=0, help="of the splits")
    parser.add_argument("--train", type=int, help="most training images per class")
    parser.add_argument("--test", type=int, help="most test images per class")
    args = parser.parse_args()
    require(args.data)
    for name in args.only or SETS:
        path = write_set(name, args.data, args.out, args.seed, train=args.train, test=args.test)
        print(f"{path}: {counts(path)}")
    return 0


def write_set(
    name: str,
    data: Path,
    out: Path,
    seed: int = 0,
    *,
    train: int | None = None,
    test: int | None = None,
) -> Path:
    """Write a set's manifest and return its path.

    Args:
        name: one of `SETS`.
        data: the folder of data sets.
        out: the folder for the manifest, made where absent.
        seed: of the split, and of which images a cap leaves.
        train: most training images per class; None for all.
        test: likewise for testing.
    """
    require(data / name.removesuffix("_multilabel").removesuffix("_photo"))
    rows = capped(SETS[name](data, seed), seed, {"train": train, "test": test})
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.csv"
    table = indicator_table if name.endswith("_multilabel") else label_table
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(table(data.resolve(), rows))
    return path


def given(data: Path, sides: Mapping[str, str]) -> list[Row]:
    """Return the images of class folders, with the side that each folder of them stands for."""
    return [
        Row(path.relative_to(data).as_posix(), (path.parent.name,), side)
        for folder, side in sides.items()
        for path in sorted((data / folder).glob("*/*"))
        if path.suffix.lower() in IMAGES
    ]


def blood_cells(data: Path) -> list[Row]:
    """Return the photos of labels.csv that are there and have a label; a cell's kind counts once.

    Of its 411 rows 44 name no photo that is there, and one has no label.
    """
    rows = []
    with (data / "wbc/labels.csv").open(encoding="utf-8-sig", newline="") as file:
        for line in csv.DictReader(file):
            kinds = {kind.strip() for kind in line["Category"].split(",")} - {""}
            path = f"wbc/images/BloodImage_{int(line['Image']):05d}.jpg"
            if kinds and (data / path).is_file():
                rows.append(Row(path, tuple(sorted(kinds))))
    return rows


def without_rare(rows: list[Row]) -> list[Row]:
    """Take away the classes with few images, and the images that then have none."""
    images = Counter(label for row in rows for label in row.labels)
    common = {label for label, count in images.items() if count >= FEWEST}
    left = (replace(row, labels=tuple(filter(common.__contains__, row.labels))) for row in rows)
    return [row for row in left if row.labels]


def drawn(names: Iterable[str], seed: int) -> list[str]:
    """Return names in a random order; which of two comes first depends on them and the seed."""
    return sorted(set(names), key=lambda name: sha256(f"{seed}/{name}".encode()).digest())


def divided(rows: list[Row], seed: int, test_share: float) -> list[Row]:
    """Give a share of the groups to the test side, or of each class's images where none are."""
    strata: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for row in rows:
        strata[() if row.group else row.labels].add(row.group or row.path)
    tested: set[str] = set()
    for names in strata.values():
        tested.update(drawn(names, seed)[: round(len(names) * test_share)])
    return [
        replace(row, split="test" if (row.group or row.path) in tested else "train") for row in rows
    ]


def capped(rows: list[Row], seed: int, caps: Mapping[str, int | None]) -> list[Row]:
    """Leave at most so many images per class (or combination of classes) on each side."""
    strata: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for row in rows:
        strata[row.split, row.labels].append(row.path)
    left = {
        path for (side, _), paths in strata.items() for path in drawn(paths, seed)[: caps[side]]
    }
    return [row for row in rows if row.path in left]


def label_table(data: Path, rows: list[Row]) -> Iterator[tuple[object, ...]]:
    """Yield a header and rows with one label column."""
    yield "path", "label", "split", "group"
    for row in rows:
        yield data / row.path, row.labels[0], row.split, row.group


def indicator_table(data: Path, rows: list[Row]) -> Iterator[tuple[object, ...]]:
    """Yield a header and rows with a column of 0 and 1 for each class."""
    classes = sorted({label for row in rows for label in row.labels})
    yield "path", *classes, "split"
    for row in rows:
        yield data / row.path, *(int(label in row.labels) for label in classes), row.split


def counts(path: Path) -> str:
    """Say how many images a manifest has on each side."""
    with path.open(encoding="utf-8", newline="") as file:
        sides = Counter(row["split"] for row in csv.DictReader(file))
    return ", ".join(f"{count} {side}" for side, count in sorted(sides.items()))


if __name__ == "__main__":
    sys.exit(main())
