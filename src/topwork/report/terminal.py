"""What people see of results: tables and lines on a terminal.

Results go to stdout, remarks to stderr. Everything is made from the plain data that ``--json``
prints as it is.
"""

from __future__ import annotations

import csv
import json
import sys
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

# Where no terminal limits them, tables are as wide as they need: nothing is cut off.
out_console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
err_console = Console(stderr=True, highlight=False)


def note(text: str) -> None:
    """Print a remark on stderr."""
    err_console.print(text, style="dim", markup=False, soft_wrap=True)


def print_json(data: Any) -> None:
    """Print one JSON object on stdout."""
    print(json.dumps(data, indent=2))


def print_csv(rows: list[dict[str, Any]], top: int) -> None:
    """Print predictions as CSV: path, label and probability of the best classes, error."""
    numbers = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    columns = [part for n in numbers for part in (f"label{n}", f"probability{n}")]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["path", *columns, "error"])
    for row in rows:
        cells = [cell for best in row.get("top", []) for cell in best.values()]
        cells += [""] * (len(columns) - len(cells))
        writer.writerow([row["path"], *cells, row.get("error", "")])


def print_fit(record: dict[str, Any]) -> None:
    """Print what a fit found, for people."""
    for line in record["data"]["summary"]:
        note(line)
    for line in record["notes"]:
        note(line)
    print("\n".join(record["plan_in_words"]))
    print_metrics(record["test"])
    cache = record["cached_codes"]
    print(
        f"{record['seconds']:.1f} s; {cache['computed']} of {cache['images']} images went through"
        " the trunk, the others came from the cache"
    )
    print(f"run folder: {record['run']}")
    print(f"next: topwork predict {record['run']} IMAGE...")


def print_metrics(metrics: dict[str, Any]) -> None:
    """Print metrics with their intervals."""
    table = Table("metric", "value", "95 % interval", "images", box=None)
    for name in ("accuracy", "balanced_accuracy", "log_loss", "calibration_error"):
        row = metrics[name]
        low, high = row["interval"]
        label = name.replace("_", " ")
        table.add_row(label, f"{row['value']:.3f}", f"{low:.3f} to {high:.3f}", str(row["n"]))
    out_console.print(table)


def print_axis(facts: dict[str, Any]) -> None:
    """Print a network's cut points."""
    size = "x".join(map(str, facts["input_size"]))
    print(
        f"{facts['name']} at {size} pixels; head {facts['head'] or 'none'},"
        f" pooled by {facts['pool'] or 'its own code'}; license {facts['license'] or 'unknown'}"
    )
    if facts["note"]:
        note(facts["note"])
    table = Table(box=None)
    table.add_column("depth", justify="right")
    table.add_column("cut point", overflow="fold")
    table.add_column("shape", no_wrap=True)
    table.add_column("layout", no_wrap=True)
    for title in ("parameters", "mult-adds", "bytes"):
        table.add_column(title, justify="right", no_wrap=True)
    for cut in facts["cuts"]:
        marks = "*" * cut["stage_end"] + "-" * bool(cut["before"])
        table.add_row(
            str(cut["depth"]),
            f"{cut['name']} {marks}",
            "x".join(map(str, cut["shape"])),
            cut["layout"],
            number(cut["parameters"]),
            number(cut["multiply_adds"]),
            number(cut["bytes"]),
        )
    out_console.print(table)
    print(
        "Parameters and multiply-adds: of all layers below. Bytes: of the tensor at the cut, for"
        " one image in float32.\n* ends a stage, whose name (such as layer3) means this depth too."
    )
    if any(cut["before"] for cut in facts["cuts"]):
        print("- lies just before a ReLU or batch norm: codes are not thresholded.")


def print_zoo(entries: list[dict[str, Any]]) -> None:
    """Print backbones to choose from."""
    table = Table(box=None)
    table.add_column("name", no_wrap=True)
    for title in ("parameters", "input", "license", "note"):
        table.add_column(title)
    for entry in entries:
        size = f"{entry['input_size']} px"
        table.add_row(
            entry["name"], number(entry["parameters"]), size, entry["license"], entry["note"]
        )
    out_console.print(table)


def print_stores(stores: list[dict[str, Any]]) -> None:
    """Print what the cache holds."""
    if not stores:
        return
    table = Table("key", "cut", "pool", "images", "size", "last written", box=None)
    for store in stores:
        table.add_row(
            store["key"][:12],
            store["cut"],
            store["pool"],
            str(store["images"]),
            f"{number(store['bytes'])}B",
            datetime.fromtimestamp(store["written"]).isoformat(" ", "minutes"),
        )
    out_console.print(table)


def print_demo(result: dict[str, Any]) -> None:
    """Print what the demo found, and where it lies."""
    record = result["record"]
    low, high = record["interval"]
    print(result["table"])
    print()
    print(f"Picture: {result['picture']}")
    print(
        f"Run folder: {record['run']} (the digits 5-9 from 20 labels per class, by `topwork fit`:"
        f" accuracy {record['accuracy']:.3f}, {low:.3f} to {high:.3f}, {record['n']} images)"
    )
    print(f"Took {result['seconds']:.0f} s.")
    print("Next, on your own images:")
    print("  topwork zoo                                     networks to choose from")
    print("  topwork fit PHOTOS --backbone NAME --out RUN    a classifier, tested honestly")
    print("  topwork predict RUN IMAGE...                    and used")


def number(value: float) -> str:
    """Write a large number briefly.

    >>> number(1_813_561_344), number(512)
    ('1.81 G', '512 ')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} "
