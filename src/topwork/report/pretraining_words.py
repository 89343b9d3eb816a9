"""A pretraining in words: its table on a terminal, and the card that goes with a backbone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from topwork.data.findings import listed
from topwork.report.terminal import out_console
from topwork.report.words import counted

SHOWN_APART = ("stage", "epoch", "epochs", "seconds", "loss", "held_out")
LIMITS = ("low", "high", "n")
"""What is beside a share NAME, as ``NAME_low`` and so on: its 95 % interval and count."""


def print_pretraining(record: dict[str, Any]) -> None:
    """Print what each stage came to, for people."""
    print(
        f"{record['method']} on {record['images']} images of {record['source']},"
        f" {record['held_out']} held out, {record['left_aside']} left aside ({record['paper']})"
    )
    header, *rows = results_table(record["results"])
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(header[0], no_wrap=True)
    for name in header[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    out_console.print(table)
    if record["reaches"]:
        print(f"weights up to {record['reaches']}: no layer above it was trained")
    print(f"{record['training_seconds']:.0f} s of training, {record['seconds']:.0f} s in all")
    print(f"backbone: {record['backbone']} (with {', '.join(record['pictures'])})")


def card_in_words(record: dict[str, Any], name: str) -> str:
    """Return the card as Markdown: from what, how, when and how well the weights were made.

    Args:
        record: of `topwork.pretrain`.
        name: the backbone's architecture.
    """
    header, *rows = results_table(record["results"])
    height, width = record["preprocessing"]["size"]
    channels = len(record["preprocessing"]["mean"])
    license, began = record.get("license"), record["started_from"]
    start = f"{sourced(began)}, up to {began['up_to']}" if began else "random weights"
    reach = (
        f"- Weights reach up to `{record['reaches']}`: no layer above it was trained, so these are"
        " left out"
    )
    lines = [
        f"# {name}, pretrained: {record['method']}",
        "",
        f"- Method: {record['method']} ({record['paper']})",
        f"- Data: {record['images']} images of `{record['source']}`; {record['held_out']} more were"
        f" held out to judge epochs by, and {record['left_aside']} left aside to choose and"
        " test with.",
        *(f"- Found: {line}" for line in findings(record["data"])),
        f"- Images: {height} x {width} pixels, {counted(channels, 'channel')}",
        f"- Started from {start}",
        *([f"- Teacher: {sourced(record['teacher'])}"] if "teacher" in record else []),
        *([reach] if record["reaches"] else []),
        *([f"- License of the weights that it was made from: {license}"] if license else []),
        f"- Seed {record['seed']}; {record['training_seconds']:.0f} s of training on"
        f" {record['machine']}; {record['date']}",
        f"- Recipe: `{json.dumps(record['recipe'])}`",
        f"- Architecture's arguments: `{json.dumps(record['architecture']['arguments'])}`",
        "",
        "After the last epoch of each stage:",
        "",
        markdown_row(header),
        markdown_row(["---", *["---:"] * (len(header) - 1)]),
        *map(markdown_row, rows),
        "",
        f"Here {record['measures']}.",
        "",
        *(f"![{name}]({name})" for name in record["pictures"]),
        "",
    ]
    return "\n".join(lines)


def sourced(weights: Mapping[str, Any]) -> str:
    """Return which weights those of a source or teacher are, and under what license."""
    digest = weights.get("sha256") or weights.get("weights_sha256") or ""
    facts = [f"SHA-256 {digest[:12]}" if digest else "", weights.get("license") or ""]
    known = ", ".join(fact for fact in facts if fact)
    return f"`{weights['name']}`" + (f" ({known})" if known else "")


def findings(data: Mapping[str, Any]) -> list[str]:
    """Return what was found of images, but for how many they are, one line each."""
    lost = listed(data["lost_later"], "cannot be decoded, left out", ": ".join)
    return [*data["summary"][1:], *([lost] if lost else [])]


def results_table(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return what stages came to as a table: a header, then a row each; no column is empty.

    Args:
        results: by stage, what its last epoch measured.

    >>> results_table({"classes": {"loss": 0.5, "held_out": None, "seconds": 2.0}})
    [['stage', 'loss'], ['classes', '0.5']]
    """
    keys = [
        key
        for key in ("loss", "held_out", *measured(results.values()))
        if any(row.get(key) is not None for row in results.values())
    ]
    header = ["stage", *(key.replace("_", " ") for key in keys)]
    return [header, *([stage, *(cell(row, key) for key in keys)] for stage, row in results.items())]


def measured(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return which measures there are beside losses and times; limits of one are no measures.

    >>> measured([{"loss": 1.0, "probe": 0.5, "probe_low": 0.4, "probe_high": 0.6, "probe_n": 50}])
    ['probe']
    """
    keys = list(dict.fromkeys(key for row in rows for key in row if key not in SHOWN_APART))
    limits = {f"{key}_{limit}" for key in keys for limit in LIMITS}
    return [key for key in keys if key not in limits]


def cell(row: Mapping[str, Any], key: str) -> str:
    """Return a measure in words, with its interval and count if there are any.

    >>> cell({"probe": 0.412, "probe_low": 0.3697, "probe_high": 0.4556, "probe_n": 500}, "probe")
    '0.412 (0.370 to 0.456, n 500)'
    """
    value, (low, high, count) = row.get(key), (row.get(f"{key}_{limit}") for limit in LIMITS)
    if value is None or low is None or high is None:
        return figure(value)
    return f"{value:.3f} ({low:.3f} to {high:.3f}, n {count})"


def markdown_row(cells: Iterable[str]) -> str:
    """Return a row of a table.

    >>> markdown_row(["layer 1", "2.5"])
    '| layer 1 | 2.5 |'
    """
    return f"| {' | '.join(cells)} |"


def figure(value: float | None) -> str:
    """Return a number with four digits, or a dash.

    >>> figure(0.123456), figure(None)
    ('0.1235', '-')
    """
    return "-" if value is None else f"{value:.4g}"
