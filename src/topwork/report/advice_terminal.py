"""What people see of profiles and advice on a terminal: tables, then what they mean in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table

from topwork.report.terminal import decimal, figure, note, number, out_console
from topwork.report.words import (
    counted,
    difference,
    gain_in_words,
    metric_name,
    seconds,
    sentence,
)

CHOSEN = ">"
LEFT: Literal["left"] = "left"
RIGHT: Literal["right"] = "right"


def print_profile(result: dict[str, Any]) -> None:
    """Print the profile of one network, or of several and how they rank.

    Args:
        result: as `topwork.advising.profile` returns it.
    """
    if "profiles" not in result:
        print_depths(result)
        return
    for profile in result["profiles"]:
        print_depths(profile)
        print()
    print_ranking(result["ranking"])
    print(f"{seconds(result['seconds'])} in all")


def print_depths(profile: dict[str, Any]) -> None:
    """Print how well probes do at each depth of a network, and what that says about the data."""
    metric = metric_name(profile["metric"])
    size = "x".join(map(str, profile["input_size"]))
    print(
        f"{profile['backbone']} at {size} pixels: {images_of(profile)}; {metric} of linear probes,"
        f" {profile['folds']} folds, the best of a path of strengths"
    )
    out_console.print(table_of_depths(profile, metric))
    print("* ends a stage. Parameters and multiply-adds: of all layers below.")
    print(f"{CHOSEN} {gain_in_words(profile)}")
    for what in ("similarity", "size"):
        if profile.get(what):
            print(f"{what}: {profile[what]['verdict']}. {sentence(profile[what]['why'])}")
    print_learning_curve(profile)
    for line in profile["notes"]:
        note(line)
    if profile.get("seconds") is not None:
        print(seconds(profile["seconds"]))


def table_of_depths(profile: dict[str, Any], metric: str) -> Table:
    """Return a row for each depth, the lowest first."""
    titles = ("", "cut point", metric, "95 % interval", "loss", "head")
    table = table_with(titles, ("columns", "parameters", "mult-adds"))
    for depth in profile["depths"]:
        best = depth["name"] == profile["best"]
        table.add_row(
            CHOSEN if best else "",
            f"{escape(depth['name'])}{' *' if depth['stage_end'] else ''}",
            *figure(depth),
            decimal(depth["loss"]),
            depth["head"],
            str(depth["columns"]),
            number(depth["parameters"]),
            number(depth["multiply_adds"]),
            style="bold" if best else None,
        )
    return table


def table_with(left: Sequence[str], right: Sequence[str], last: Sequence[str] = ()) -> Table:
    """Return a table of columns that begin or end alike; too narrow a terminal breaks their words.

    Args:
        left: titles of columns that are aligned to the left.
        right: of those aligned to the right, after them.
        last: of further ones aligned to the left.
    """
    table = Table(box=None)
    for titles, justify in ((left, LEFT), (right, RIGHT), (last, LEFT)):
        for title in titles:
            table.add_column(title, justify=justify, overflow="fold")
    return table


def print_learning_curve(profile: dict[str, Any]) -> None:
    """Print how the best depth does with fewer labels."""
    curve = profile["learning_curve"]
    labels = "labels per class" if profile["metric"] == "accuracy" else "labeled images"
    table = Table(labels, metric_name(profile["metric"]), "95 % interval", box=None)
    for point in curve["points"]:
        table.add_row(decimal(point["images_per_class"]), *figure(point))
    print(f"with fewer labels, at {curve['depth']}, {curve['head']} head:")
    out_console.print(table)


def print_ranking(ranking: list[dict[str, Any]]) -> None:
    """Print how networks rank for the data, the best first."""
    titles = ("", "network", "best at", "value", "95 % interval", "loss")
    table = table_with(
        titles, ("H-score", "LogME", "LEEP", "NCE", "ms/image", "parameters", "mult-adds")
    )
    for row in ranking:
        table.add_row(
            CHOSEN if row["recommended"] else "",
            escape(row["backbone"]),
            escape(row["depth"]),
            *figure(row),
            decimal(row["loss"]),
            *map(known, (row["h_score"], row["log_me"], row["leep"], row["nce"])),
            known(row["milliseconds"]),
            number(row["parameters"]),
            number(row["multiply_adds"]),
            style="bold" if row["recommended"] else None,
        )
    out_console.print(table)
    for row in ranking:
        print(f"{CHOSEN if row['recommended'] else ' '} {row['backbone']}: {sentence(row['why'])}")


def print_advice(advice: dict[str, Any]) -> None:
    """Print the plans that were compared, and what is recommended.

    Args:
        advice: as `topwork.advising.advise` returns it.
    """
    profile = advice["profile"]
    if advice.get("ranking"):
        print_ranking(advice["ranking"])
        print()
    print(f"{advice['backbone']}: {images_of(profile)}; {len(advice['candidates'])} plans")
    out_console.print(table_of_candidates(advice))
    if advice["compared_with"]:
        print(f"Difference: from {advice['compared_with']}, on the same images.")
    print(f"profile: {gain_in_words(profile)}")
    for what in ("similarity", "size"):
        if profile.get(what):
            print(f"{what}: {profile[what]['verdict']}. {sentence(profile[what]['why'])}")
    print(textbook_in_words(advice["textbook"]))
    print(f"recommended: {advice['recommended_name']}")
    for line in (sentence(advice["why"]), *advice["plan_in_words"]):
        print(f"  {line}")
    budget = seconds(advice["time_budget"]) if advice["time_budget"] is not None else "no limit"
    print(f"{seconds(advice['seconds'])} of {budget}")


def table_of_candidates(advice: dict[str, Any]) -> Table:
    """Return a row for each plan, cheapest first as they were tried."""
    metric = advice["metric"]
    value = "value" if metric == "none" else metric_name(metric)  # of numbers there is the loss
    titles = ("", "plan", value, "95 % interval", "loss", "images", "difference")
    table = table_with(titles, ("tried in", "to fit"), ("",))
    for row in advice["candidates"]:
        table.add_row(
            CHOSEN if row["recommended"] else "",
            escape(row["name"]),
            *figure(row),
            known(row["loss"]),
            str(row["n"] or "-"),
            difference_in_words(row["difference"]),
            seconds(row["seconds"]) if row["seconds"] else "-",
            seconds(row["seconds_to_fit"]),
            escape(f"{row['state']}: {row['reason']}" if row["reason"] else row["state"]),
            style="bold" if row["recommended"] else "dim" if row["state"] == "not tried" else None,
        )
    return table


def difference_in_words(row: dict[str, Any] | None) -> str:
    """Write a difference of accuracies; "-" where there is none."""
    if row is None:
        return "-"
    return difference("accuracy", row) + (", told apart" if row["told_apart"] else "")


def textbook_in_words(textbook: dict[str, Any]) -> str:
    """Say what the rule of thumb by size and similarity would choose, and whether that holds."""
    agrees = {
        True: "the measurement agrees",
        False: "the measurement disagrees",
        None: "whether that holds cannot be told",
    }[textbook["agrees"]]
    return f"textbook: {textbook['words'].rstrip('.')}; {agrees}."


def images_of(profile: dict[str, Any]) -> str:
    """Say how many images there are, and of what."""
    text = counted(profile["images"], "image")
    if profile["majority"] is None:
        return text
    classes = counted(len(profile["classes"]), "class")
    return f"{text} of {classes}, the most frequent {decimal(profile['majority'])}"


def known(value: float | None) -> str:
    """Write a number; "-" where it is not known.

    >>> known(-1.5), known(None)
    ('-1.50', '-')
    """
    return "-" if value is None else decimal(value)
