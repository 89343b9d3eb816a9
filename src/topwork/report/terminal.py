"""What people see of results: tables and lines on a terminal.

Results go to stdout, remarks to stderr. Everything is made from the plain data that ``--json``
prints as it is.
"""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

# Where no terminal limits them, tables are as wide as they need: nothing is cut off.
out_console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
err_console = Console(stderr=True, highlight=False)


METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "mean_average_precision": "mean average precision",
    "f1": "mean F1",
    "exact_match": "all labels right",
    "label_accuracy": "right labels",
    "roc_auc": "area under ROC curve",
    "average_precision": "average precision",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
    "mean_absolute_error": "mean absolute error",
    "root_mean_squared_error": "root mean squared error",
    "r2": "R squared",
}


def note(text: str) -> None:
    """Print a remark on stderr."""
    err_console.print(text, style="dim", markup=False, soft_wrap=True)


def print_json(data: Any) -> None:
    """Print one JSON object on stdout."""
    print(json.dumps(data, indent=2))


def print_fit(record: dict[str, Any]) -> None:
    """Print what a fit found, for people."""
    for line in record["data"]["summary"]:
        note(line)
    for line in record["notes"]:
        note(line)
    if advice := record["advice"]:
        tried = sum(row["state"] != "not tried" for row in advice["candidates"])
        print(f"plan found in {advice['seconds']:.1f} s, comparing {tried}: {advice['why']}")
    print("\n".join(record["plan_in_words"]))
    for number, phase in enumerate(record["phases"], 1):
        print_phase(phase, number)
    print_metrics(record["test"])
    print(f"{record['seconds']:.1f} s; {trunk_use(record)}")
    print(f"run folder: {record['run']}")
    print(f"report: {record['run']}/report.html")
    print(f"next: topwork predict {shlex.quote(record['run'])} IMAGE...")


def trunk_use(record: dict[str, Any]) -> str:
    """Say how often a fit ran the trunk; what finding its plan took is not counted."""
    count = record["cached_codes"]["computed"]
    when = " once the plan was found" if record.get("advice") else ""
    if not count:
        return f"no image went through the trunk{when}: all came from the cache"
    return f"{count} views of images went through the trunk{when}; what was cached did not"


def print_phase(phase: dict[str, Any], number: int) -> None:
    """Print what became of a phase: its curve if it was gradual, else its end in one line."""
    if "probe" in phase:
        found = phase["probe"]["out_of_fold"]
        when = "at last" if phase.get("at_last") else f"phase {number}"
        metric = found["metric"].replace("_", " ")
        print(
            f"{when}: head solved for on {phase['images']} images;"
            f" {metric} {decimal(found['value'])} out of fold"
        )
    elif phase.get("gradual"):
        table = Table(f"phase {number}: frozen up to", "held out", "95 % interval", "", box=None)
        start = phase["start"]
        before = "-" if start["accuracy"] is None else decimal(start["accuracy"])
        table.add_row("before it", before, "", "" if phase["chosen"] else "kept")
        for point in phase["curve"]:
            mark = "kept" if point["frozen"] == phase["chosen"] else ""
            held_out = {"value": point["accuracy"], "interval": point["interval"]}
            table.add_row(escape(point["frozen"]), *figure(held_out), mark)
        out_console.print(table)
    else:
        best, epochs = phase["best"], phase["epochs"]
        text = f"phase {number}: {len(epochs)} epochs, {phase['seconds']:.1f} s"
        if best:
            accuracy = best["accuracy"]["value"]
            score = f"loss {best['loss']:.3f}" if accuracy is None else f"{accuracy:.3f} right"
            text += f"; best after {best['epoch']}, {score} of {phase['held_out']} held out"
            if not phase["improved"]:
                text += ", not beyond chance: the weights before were kept"
        print(f"{text}{'; ' + phase['stopped'] if phase['stopped'] else ''}")


def print_metrics(metrics: dict[str, Any]) -> None:
    """Print metrics with their intervals."""
    table = Table("metric", "value", "95 % interval", "images", box=None)
    for name in (name for name in METRICS if name in metrics):
        table.add_row(METRICS[name], *figure(metrics[name]), str(metrics[name]["n"]))
    out_console.print(table)
    if "per_label" in metrics:
        print_each(metrics["per_label"], "label", "average_precision")
    elif len(metrics.get("per_number", ())) > 1:
        print_each(metrics["per_number"], "name", "mean_absolute_error")


def print_each(rows: list[dict[str, Any]], what: str, metric: str) -> None:
    """Print one metric of each label or number."""
    table = Table(what, METRICS[metric], "95 % interval", "images", box=None)
    for row in rows:
        table.add_row(escape(row[what]), *figure(row[metric]), str(row.get("n", row[metric]["n"])))
    out_console.print(table)


def figure(row: dict[str, Any]) -> tuple[str, str]:
    """Write a value and its interval; "-" where it is not defined.

    >>> figure({"value": 0.12345, "interval": [0.1, 20.0], "n": 7})
    ('0.123', '0.100 to 20.0')
    """
    if row["value"] is None:
        return "-", "-"
    low, high = row["interval"]
    return decimal(row["value"]), f"{decimal(low)} to {decimal(high)}"


def decimal(value: float) -> str:
    """Write three digits, for numbers below 1 three decimals.

    >>> decimal(0.0123), decimal(12.345), decimal(4321.0)
    ('0.012', '12.3', '4321')
    """
    size = abs(value)
    return f"{value:.{3 if size < 1.0005 else 2 if size < 9.995 else 1 if size < 99.95 else 0}f}"


def print_axis(facts: dict[str, Any]) -> None:
    """Print a network's cut points."""
    size = "x".join(map(str, facts["input_size"]))
    print(
        f"{facts['name']} at {size} pixels; head {facts['head'] or 'none'},"
        f" pooled by {facts['pool'] or 'its own code'}; license {facts['license'] or 'unknown'}"
    )
    if facts["note"]:
        note(facts["note"])
    if facts["reaches"] not in (None, facts["cuts"][-1]["name"]):
        note(f"its weights reach up to {facts['reaches']}; layers above are dropped by default")
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


def print_runtimes(rows: list[dict[str, Any]]) -> None:
    """Print how fast a network's layers run here, by runtime."""
    table = Table(box=None)
    table.add_column("runtime", no_wrap=True)
    for title in ("images/s", "to eager", "difference", "setup"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    for row in rows:
        figures = ["-"] * 4
        if row["images_per_second"]:
            difference = row["difference"]
            figures = [
                decimal(row["images_per_second"]),
                f"{row['ratio']:.2f}x",
                "-" if difference is None else f"{difference:.0e}" if difference else "0",
                f"{row['setup']:.1f} s",
            ]
        remark = row["problem"] or ("chosen" if row["chosen"] else "")
        table.add_row(row["runtime"], *figures, escape(remark))
    out_console.print(table)
    print(
        "All layers below L, random weights, all cores at work. Difference: from eager, relative to"
        " the largest value. Setup: to open it, compiling included."
    )


def print_zoo(entries: list[dict[str, Any]]) -> None:
    """Print backbones to choose from."""
    table = Table(box=None)
    table.add_column("name", no_wrap=True)
    for title in ("parameters", "mult-adds", "input", "license", "note"):
        table.add_column(title)
    for entry in entries:
        size = f"{entry['input_size']} px"
        costs = [number(entry[key]) for key in ("parameters", "multiply_adds")]
        table.add_row(entry["name"], *costs, size, entry["license"], entry["note"])
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


def print_photos_demo(result: dict[str, Any]) -> None:
    """Print what the demo found on a user's images, and where it lies."""
    record = result["record"]
    count = result["reused"]["n"]
    print(f"Best depth of {result['backbone']} on {count} training images, by cross-validation:")
    for key, who in (("reused", "its own weights"), ("random", "random weights")):
        found = result[key]
        low, high = found["interval"]
        print(f"  {who:15}  {found['accuracy']:.3f} ({low:.3f} to {high:.3f}) at {found['name']}")
    low, high = record["interval"]
    print(
        f"Tested by `topwork fit`: accuracy {record['accuracy']:.3f}, {low:.3f} to {high:.3f},"
        f" {record['n']} images it has not seen"
    )
    print(f"Picture: {result['picture']}")
    print(f"Run folder: {record['run']}, with report.html")
    print(f"Took {result['seconds']:.0f} s.")
    print("Next:")
    print("  topwork predict RUN IMAGE...                    use it")
    print("  topwork zoo                                     stronger networks to choose from")
    print("  topwork fit PHOTOS --backbone NAME --out RUN    the same with one of them")


def number(value: float) -> str:
    """Write a large number briefly.

    >>> number(1_813_561_344), number(512), number(999_700)
    ('1.81 G', '512 ', '1 M')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:  # which would be rounded to 1000 of the next smaller unit
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} "
