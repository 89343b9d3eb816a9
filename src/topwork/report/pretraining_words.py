"""A pretraining in words: its table on a terminal, and the card that goes with a backbone."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from topwork.report.terminal import out_console

SHOWN_APART = ("loss", "held_out", "seconds")


def print_pretraining(record: dict[str, Any]) -> None:
    """Print what each stage came to, for people."""
    print(
        f"{record['method']} on {record['images']} images of {record['source']},"
        f" {record['held_out']} held out ({record['paper']})"
    )
    measured = list(
        dict.fromkeys(k for row in record["results"].values() for k in row if k not in SHOWN_APART)
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("stage", no_wrap=True)
    for name in ("loss", "held out", *(name.replace("_", " ") for name in measured)):
        table.add_column(name, justify="right")
    for stage, row in record["results"].items():
        table.add_row(stage, *(figure(row.get(key)) for key in ("loss", "held_out", *measured)))
    out_console.print(table)
    print(f"{record['training_seconds']:.0f} s of training, {record['seconds']:.0f} s in all")
    print(f"backbone: {record['backbone']} (with {', '.join(record['pictures'])})")


def card_in_words(record: dict[str, Any], name: str) -> str:
    """Return the card as Markdown: from what, how, when and how well the weights were made.

    Args:
        record: of `topwork.pretrain`.
        name: the backbone's architecture.
    """
    lines = [
        f"# {name}, pretrained: {record['method']}",
        "",
        f"- Method: {record['method']} ({record['paper']})",
        f"- Data: {record['images']} images of `{record['source']}`; {record['held_out']} more were"
        " held out to judge epochs by. Of labeled data the test part was not used.",
        f"- Seed {record['seed']}; {record['training_seconds']:.0f} s of training on"
        f" {record['machine']}; {record['date']}",
        f"- Recipe: `{_short(record['recipe'])}`",
        f"- Architecture's arguments: `{_short(record['arguments'])}`",
        "",
        "| stage | what | value after the last epoch |",
        "|---|---|---|",
    ]
    for stage, row in record["results"].items():
        for key, value in row.items():
            lines.append(f"| {stage} | {key.replace('_', ' ')} | {figure(value)} |")
    lines += ["", *(f"![{name}]({name})" for name in record["pictures"]), ""]
    return "\n".join(lines)


def _short(data: dict[str, Any]) -> str:
    import json

    return json.dumps(data)


def figure(value: float | None) -> str:
    """Return a number with four digits, or a dash.

    >>> figure(0.123456), figure(None)
    ('0.1235', '-')
    """
    return "-" if value is None else f"{value:.4g}"
