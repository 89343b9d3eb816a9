"""What a report says of the advice that led to a plan: profile, similarity, candidates, curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from topwork.report.charts import Chart, by_name, curve, interval
from topwork.report.scales import Point, Scale, Tick, logarithmic, of_numbers, of_shares
from topwork.report.terminal import number
from topwork.report.words import (
    SHARES,
    amount,
    counted,
    difference,
    gain_in_words,
    limits,
    listed,
    metric_name,
    seconds,
    sentence,
)


def advised(advice: dict[str, Any]) -> dict[str, Any]:
    """Return what is said of an advice: words, tables and charts.

    Args:
        advice: as `topwork.advising.advise` returns it.
    """
    profile = advice["profile"]
    return {
        "recommended": recommended(advice["recommended_name"], advice["why"]),
        "spent": spent(advice),
        "similarity": profile["similarity"] | {"why": sentence(profile["similarity"]["why"])},
        "size": profile["size"] | {"why": sentence(profile["size"]["why"])},
        "notes": profile["notes"],
        "profile": by_depth(profile, advice["recommended"]),
        "candidates": candidates(advice),
        "textbook": advice["textbook"],
        "learning_curve": learning_curve(profile),
    }


def recommended(name: str, why: str) -> str:
    """Say which plan is recommended and why, its name once.

    >>> recommended("fine-tune all", "it has the least loss")
    'Fine-tune all: it has the least loss.'
    """
    return sentence(why if name in why else f"{name}: {why}")


def spent(advice: dict[str, Any]) -> str:
    """Say what the comparison was made on, and how long it took."""
    budget = advice["time_budget"]
    within = "" if budget is None else f", within {seconds(budget)}"
    return (
        f"Compared on {counted(advice['images'], 'image')} of the training part, in"
        f" {counted(advice['folds'], 'fold')}{within}; it took {seconds(advice['seconds'])}."
        " The test images had no part in it."
    )


def scale_of(metric: str, points: Sequence[Point]) -> Scale:
    """Return a scale for a metric: shares in percent, up to 100."""
    return of_shares(points) if metric in SHARES else of_numbers(points)


def by_depth(profile: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    """Return the profile: how well a head does at each depth, as two charts and a table."""
    metric, depths = profile["metric"], profile["depths"]
    names = [depth["name"] for depth in depths]
    chosen = [place for place, name in enumerate(names) if name in plan["codes"]]
    known = [place for place, depth in enumerate(depths) if depth["value"] is not None]
    values = [(place, depths[place]["value"], depths[place]["interval"]) for place in known]
    losses = [(place, depth["loss"], None) for place, depth in enumerate(depths)]

    def value_at(number: int) -> str:
        depth = depths[known[number]]
        value, interval = amount(metric, depth["value"]), limits(metric, depth["interval"])
        return f"{depth['name']}: {value} ({interval})"

    def loss_at(number: int) -> str:
        return f"{names[number]}: {losses[number][1]:.3f}"

    name = metric_name(metric)
    # The words of several marks could run into each other; the axis names them too.
    marks = {place: names[place] if len(chosen) == 1 else "" for place in chosen}
    axis = "depth, from the input to the top"
    charts = [
        by_name(title, axis, names, color, points, scale, words, marks)
        for title, color, points, scale, words in (
            (f"{name.capitalize()} by depth", "main", values, scale_of(metric, values), value_at),
            ("Loss by depth", "second", losses, of_numbers(losses), loss_at),
        )
    ]
    return {
        "metric": name,
        "charts": charts,
        "caption": caption_of(profile, chosen, names),
        "rows": [
            {
                "name": depth["name"],
                "chosen": depth["name"] in plan["codes"],
                "value": amount(metric, depth["value"]),
                "interval": limits(metric, depth["interval"]),
                "loss": f"{depth['loss']:.3f}",
                "head": depth["head"],
                "columns": f"{depth['columns']:,}",
                "parameters": number(depth["parameters"]).strip(),
                "multiply_adds": number(depth["multiply_adds"]).strip(),
            }
            for depth in reversed(depths)
        ],
    }


def caption_of(profile: dict[str, Any], chosen: list[int], names: list[str]) -> str:
    """Say what the profile shows: where it is best, and whether that differs from the top."""
    text = (
        f"A linear head on the outputs of each depth, {profile['folds']}-fold cross-validation on"
        f" {counted(profile['images'], 'image')}; bands are 95 % intervals."
        f" {sentence(gain_in_words(profile))}"
    )
    if chosen:
        read = listed([names[place] for place in chosen])
        lines = "The line marks" if len(chosen) == 1 else "The lines mark"
        text += f" {lines} what the plan's head reads: {read}."
    return text


def candidates(advice: dict[str, Any]) -> dict[str, Any]:
    """Return the plans in groups, by what their figures were measured on, cheapest first."""
    metric, rows = advice["metric"], advice["candidates"]
    champion = advice.get("compared_with")
    points = [(0.0, row["value"], row["interval"]) for row in rows if row["value"] is not None]
    scale = scale_of(metric, points) if points else Scale(0, 1)
    judged = [row for row in rows if row["loss"] is not None]
    groups = (
        (
            "On frozen features",
            "Each image was judged by a head that had not learned from it (out of fold).",
            [row for row in judged if not is_trial(row["plan"])],
        ),
        (
            "In trials",
            "Each learned from some of the images, often in fewer epochs, and was judged by others;"
            " figures from different images cannot be compared."
            + (f" For the differences {champion} learned anew from the same." if champion else ""),
            [row for row in judged if is_trial(row["plan"])],
        ),
        ("Not judged", "", [row for row in rows if row["loss"] is None]),
    )
    return {
        "metric": None if metric == "none" else metric_name(metric),
        "ticks": scale.ticks,
        "compared_with": champion,
        "groups": [
            {
                "name": name,
                "caption": text,
                "rows": [candidate(row, metric, scale) for row in found],
            }
            for name, text, found in groups
            if found
        ],
        "caption": caption_of_candidates(metric, champion),
    }


def is_trial(plan: dict[str, Any]) -> bool:
    """Say whether a plan takes a trial; the others are judged by cached codes at once."""
    return plan["views"] > 1 or any(phase["epochs"] for phase in plan["phases"])


def caption_of_candidates(metric: str, champion: str | None) -> str:
    """Say what the figures of candidates are, and which is recommended."""
    text = (
        "Of numbers there is the loss alone: the squared error as a share of the variance."
        if metric == "none"
        else f"Lines: {metric_name(metric)}, with 95 % intervals."
    )
    if champion:
        text += (
            " Recommended are frozen features, unless a trial is better by more than two standard"
            " errors of the loss."
        )
    return text


def candidate(row: dict[str, Any], metric: str, scale: Scale) -> dict[str, Any]:
    """Return one plan that was compared, or why it was not."""
    apart = row["difference"]
    return {
        "name": row["name"],
        "recommended": row["recommended"],
        "state": row["state"],
        "why": row["why"],
        "corner": row["corner"],
        "reason": row["reason"],
        "range": interval(row, scale),
        "value": amount(metric, row["value"]),
        "interval": limits(metric, row["interval"]),
        "n": f"{row['n']:,}" if row["n"] else "-",
        "loss": "-" if row["loss"] is None else f"{row['loss']:.3f}",
        "difference": difference(metric, apart),
        "told_apart": bool(apart and apart["told_apart"]),
        "seconds": seconds(row["seconds"]) if row["state"] != "not tried" else "-",
        "seconds_to_fit": seconds(row["seconds_to_fit"]),
    }


def learning_curve(profile: dict[str, Any]) -> dict[str, Any] | None:
    """Return how the value grows with the number of training images; None if that is not known."""
    found = profile["learning_curve"]
    points = [point for point in (found or {}).get("points", ()) if point["value"] is not None]
    if len(points) < 2:
        return None
    metric = profile["metric"]
    x = logarithmic([point["images"] for point in points], str)
    ticks = tuple(Tick(x.place(point["images"]), f"{point['images']:,}") for point in points)
    rows = [(point["images"], point["value"], point["interval"]) for point in points]
    y = scale_of(metric, rows)

    def words(number: int) -> str:
        point = points[number]
        return (
            f"{point['images']} images: {amount(metric, point['value'])}"
            f" ({limits(metric, point['interval'])})"
        )

    name = metric_name(metric)
    doubling = found["doubling"] if metric == "accuracy" else None
    caption = f"The same head at {found['depth']}, trained on fewer images."
    if doubling and doubling["value"] is not None:
        caption += (
            f" Twice the images are expected to add {difference(metric, doubling)} of accuracy."
        )
    return {
        "chart": Chart(
            title=f"{name.capitalize()} by number of training images",
            x_title="training images",
            x_ticks=ticks,
            y_ticks=y.ticks,
            curves=(curve(name, "main", rows, x, y, words),),
        ),
        "caption": caption,
    }
