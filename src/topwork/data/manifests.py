"""A table that lists images and their labels: CSV or Parquet.

Image paths are relative to the table's own folder. One label column holds one class name per row,
or several with a separator between them; several label columns hold 0 or 1 each. In both latter
cases the images are multi-label. Where numbers are asked for, each label column holds one.
"""

from __future__ import annotations

import csv
import os
import posixpath
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from topwork.data.folders import read_file, refuse_unreadable
from topwork.data.image_set import SIDE_OF, ImageSet, Item, require_classes
from topwork.errors import DataError, UsageError, did_you_mean

# One list of cells per column; what is empty or null is "".
Table = dict[str, list[str]]

_PATH_NAMES = ("path", "file", "filename", "file_name", "filepath", "image_path", "image")
_LABEL_NAMES = ("label", "class", "category", "target")
_SPLIT_NAMES = ("split", "set", "fold")
_GROUP_NAMES = ("group",)

_INDICATOR = {
    "0": False,
    "1": True,
    "0.0": False,
    "1.0": True,
    "false": False,
    "true": True,
}


def open_manifest(
    path: Path,
    *,
    path_column: str | None = None,
    label_columns: Sequence[str] = (),
    split_column: str | None = None,
    group_column: str | None = None,
    label_separator: str | None = None,
    numbers: bool = False,
    least_classes: int = 2,
) -> ImageSet:
    """Return the images that a table lists; columns that are not named go by their usual names.

    Without a label column, two or more columns that hold 0 and 1 alone are the labels, if there are
    no others beside path, split and group.

    Rows without a label, without a file, or for a file that came before are skipped with a reason.

    Raises:
        DataError: a column is missing, a cell makes no sense, or no row can be used.
        UsageError: a separator with several label columns, or with numbers.
    """
    table = _read_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _read_csv(path)
    names = table[_required(table, path_column, _PATH_NAMES, "image path", "path_column", path)]
    if label_columns:
        chosen = [_named(table, column, path) for column in label_columns]
    elif not (chosen := [] if numbers or label_separator else _indicator_columns(table)):
        chosen = [_required(table, None, _LABEL_NAMES, "label", "label_columns", path)]
    labels = [table[column] for column in chosen]
    if label_separator is not None and (numbers or len(chosen) > 1 or not label_separator):
        raise UsageError(
            f"{path}: label_separator divides the class names in one column; leave it out"
        )
    multilabel = not numbers and (len(chosen) > 1 or label_separator is not None)
    splits = _sides(table, split_column, path)
    group = _optional(table, group_column, _GROUP_NAMES, path)
    groups = table[group] if group else [""] * len(names)

    names = [_normalized(name) for name in names]
    root = str(path.parent)
    present = _present(root, names)
    items: list[Item] = []
    skipped: list[tuple[str, str]] = []
    seen: set[str] = set()
    for row, name in enumerate(names):
        cells = [column[row].strip() for column in labels]
        reason = _unusable(name, cells, name in present, name in seen)
        if reason:
            skipped.append((name or f"row {row + 1}", reason))
            continue
        seen.add(name)
        if label_separator is not None:
            own = _divided(cells[0], label_separator)
        else:
            own = _indicated(chosen, cells, row, path) if multilabel else tuple(cells)
        items.append(Item(name, own, splits[row], groups[row].strip() or None))
    if names and not present:
        raise DataError(
            f"{path}: none of its {len(names)} images is there; the first would be "
            f"{os.path.join(root, names[0])}; paths are relative to the manifest's folder"
        )
    source = partial(read_file, root)
    images = require_classes(
        ImageSet(
            str(path),
            tuple(items),
            source,
            tuple(skipped),
            multilabel=multilabel,
            number_names=tuple(chosen) if numbers else (),
        ),
        least_classes,
    )
    refuse_unreadable(images, root)
    return images


def _unusable(name: str, cells: list[str], is_there: bool, is_repeated: bool) -> str:
    """Say why a row cannot be an item, or return an empty string."""
    if not name:
        return "blank path"
    if not is_there:
        return "no such file"
    if is_repeated:
        return "listed before"
    return "" if all(cells) else "blank label"


def _indicator_columns(table: Table) -> list[str]:
    """Return the columns that say for each label yes or no; none if there is a label column.

    >>> _indicator_columns({"path": ["a.png"], "cat": ["1"], "dog": ["0"], "split": ["train"]})
    ['cat', 'dog']
    """
    by_lower = {column.strip().lower(): column for column in table}
    if any(name in by_lower for name in _LABEL_NAMES):
        return []
    known = (_PATH_NAMES, _SPLIT_NAMES, _GROUP_NAMES)
    usual = {next((name for name in names if name in by_lower), None) for names in known}
    rest = [column for lower, column in by_lower.items() if lower not in usual]
    allowed = {*_INDICATOR, ""}  # a row with a blank is left out later, with the reason
    yes_or_no = all(cell.strip().lower() in allowed for name in rest for cell in table[name])
    return rest if len(rest) > 1 and yes_or_no else []


def _divided(cell: str, separator: str) -> tuple[str, ...]:
    """Return the names in a cell, each once, without the blanks around them.

    >>> _divided("wet; cold;", ";")
    ('wet', 'cold')
    """
    names = (name.strip() for name in cell.split(separator))
    return tuple(dict.fromkeys(name for name in names if name))


def _indicated(columns: list[str], cells: list[str], row: int, path: Path) -> tuple[str, ...]:
    """Return the columns whose cell says yes."""
    for column, cell in zip(columns, cells, strict=True):
        if cell.lower() not in _INDICATOR:
            raise DataError(
                f"{path}: column {column!r} holds {cell!r} in row {row + 1}; "
                f"several label columns must hold 0 or 1"
            )
    pairs = zip(columns, cells, strict=True)
    return tuple(column for column, cell in pairs if _INDICATOR[cell.lower()])


def _normalized(name: str) -> str:
    name = name.strip().replace("\\", "/")
    return posixpath.normpath(name) if name else ""


def _present(root: str, names: Iterable[str]) -> set[str]:
    """Return those names that are files below the root; lists folders, looks at no single file."""
    wanted: dict[str, list[str]] = {}
    for name in names:
        wanted.setdefault(posixpath.dirname(name), []).append(name)
    present: set[str] = set()
    for folder, members in wanted.items():
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                files = {entry.name for entry in entries if entry.is_file()}
        except (OSError, ValueError):  # absent, closed, or no path at all
            continue
        present.update(name for name in members if posixpath.basename(name) in files)
    return present


def _sides(table: Table, asked: str | None, path: Path) -> list[str | None]:
    """Return each row's side; a column that was not asked for counts only if it names any.

    Raises:
        DataError: for a name of no side beside others, or where the column was asked for or is
            called split: to go on without the split would be to learn from test images.
    """
    column = _optional(table, asked, _SPLIT_NAMES, path)
    rows = len(next(iter(table.values()), []))
    if column is None:
        return [None] * rows
    cells = [cell.strip().lower() for cell in table[column]]
    strange = next((cell for cell in cells if cell and cell not in SIDE_OF), None)
    if strange is None:
        return [SIDE_OF.get(cell) for cell in cells]
    is_meant = asked is not None or column.strip().lower() == _SPLIT_NAMES[0]
    if not is_meant and not any(cell in SIDE_OF for cell in cells):
        return [None] * rows
    row = cells.index(strange) + 1
    raise DataError(
        f"{path}: column {column!r} holds {strange!r} in row {row}; give train, val or test"
    )


def _required(
    table: Table, asked: str | None, usual: Sequence[str], what: str, option: str, path: Path
) -> str:
    column = _optional(table, asked, usual, path)
    if column is None:
        raise DataError(
            f"{path}: no column for the {what} (tried {', '.join(usual)}); {_columns(table)}; "
            f"rename one to {usual[0]}, or from Python name it with {option}"
        )
    return column


def _optional(table: Table, asked: str | None, usual: Sequence[str], path: Path) -> str | None:
    if asked is not None:
        return _named(table, asked, path)
    by_lower = {column.strip().lower(): column for column in table}
    return next((by_lower[name] for name in usual if name in by_lower), None)


def _named(table: Table, asked: str, path: Path) -> str:
    by_lower = {column.strip().lower(): column for column in table}
    if asked in table:
        return asked
    if asked.strip().lower() in by_lower:
        return by_lower[asked.strip().lower()]
    raise DataError(f"{path}: no column {asked!r}{did_you_mean(asked, table)}; {_columns(table)}")


def _columns(table: Table) -> str:
    return f"its columns are {', '.join(column or '(unnamed)' for column in table) or 'none'}"


def _read_csv(path: Path) -> Table:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=first.count)
            rows = [row for row in csv.reader(file, delimiter=delimiter, strict=True) if row]
    except PermissionError as error:
        raise DataError(f"{path}: no permission to read it") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text; save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error}); mend its quotes") from error
    if not rows:
        raise DataError(f"{path}: empty; give a header with path and label, then one row per image")
    header, *body = rows
    _refuse_repeated(header, path)
    for number, row in enumerate(body, 1):
        if any(cell.strip() for cell in row[len(header) :]):
            raise DataError(
                f"{path}: row {number} has {len(row)} cells, the header {len(header)}; quote what"
                f" holds a {delimiter!r}"
            )
    return {
        column: [row[index] if index < len(row) else "" for row in body]
        for index, column in enumerate(header)
    }


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow; pip install 'topwork[parquet]'"
        ) from error
    try:
        table = parquet.read_table(path)
    except PermissionError as error:
        raise DataError(f"{path}: no permission to read it") from error
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"{path}: not a Parquet file, or damaged; save it again") from error
    _refuse_repeated(table.column_names, path)
    return {
        column: ["" if cell is None else str(cell) for cell in table[column].to_pylist()]
        for column in table.column_names
    }


def _refuse_repeated(columns: Sequence[str], path: Path) -> None:
    repeated = next((column for column in columns if columns.count(column) > 1), None)
    if repeated is not None:
        raise DataError(f"{path}: column {repeated!r} appears twice; rename one of them")
