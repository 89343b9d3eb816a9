"""What a picture of profiles says in words: its headline, and numbers with their unit."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from topwork.report.words import SHARES, amount

Profile = dict[str, Any]

LONGEST = 86  # letters in a line of the headline


def headline(profile: Profile) -> str:
    """Say in words where a network is best on the data, and what that tells about the data.

    >>> depth = {"name": "layer4", "value": 0.97}
    >>> headline({"metric": "accuracy", "depths": [depth], "best": "layer4",
    ...     "top": "layer4", "gain": None})
    'Best at the top (97.0 %)'
    """
    values = {depth["name"]: depth["value"] for depth in profile["depths"]}
    best, top, metric = profile["best"], profile["top"], profile["metric"]
    similarity = profile.get("similarity") or {}
    value, at_top = amount(metric, values[best]), amount(metric, values[top])
    gain = profile["gain"] or {"told_apart": False}
    known = [number for number in values.values() if number is not None]
    if not known:
        return "Nothing could be measured: no image that was held out has any of the labels"
    if similarity.get("transfers") is False:
        return f"Nothing transfers: even at its best depth, {best}, the network gives {value}"
    most = max(known, key=sign_of(metric).__mul__)
    found = "Best at" if values[best] == most else "Least loss at"
    if best == top:
        found += f" the top ({value})"
    elif not gain["told_apart"]:
        found += f" {best} ({value}; {at_top} at the top)"
    else:
        points, side = 100 * gain["value"], "above" if gain["value"] > 0 else "below"
        what = "" if metric == "accuracy" else " of right labels"
        found += f" {best} ({value}), {abs(points):.1f} points{what} {side} the top"
    meaning = {
        "similar": "the data is like what the network was pretrained on",
        "different": "the data is unlike what the network was pretrained on",
    }.get(similarity.get("verdict", ""))
    return f"{found}: {meaning}" if meaning else found


def headline_of_several(profiles: Sequence[Profile]) -> str:
    """Name the networks, that with the least loss at its best depth first."""
    ranked = sorted(profiles, key=lambda profile: best_of(profile)["loss"])
    first, *others = [
        f"{short_name(profile)} at {profile['best']}"
        f" ({amount(profile['metric'], best_of(profile)['value'])})"
        for profile in ranked
    ]
    behind = f", then {others[0]}" + (f" and {len(others) - 1} more" if others[1:] else "")
    return f"Best of {len(profiles)}: {first}{behind}"


def head_of(profiles: Sequence[Profile]) -> list[str]:
    """Return the headline's lines."""
    text = headline_of_several(profiles) if len(profiles) > 1 else headline(profiles[0])
    return textwrap.wrap(text.replace(" %", "\N{NO-BREAK SPACE}%"), LONGEST)


def words_on_labels(profiles: Sequence[Profile]) -> str:
    """Say what runs to the right, and what twice as many labels are expected to add."""
    first = profiles[0]
    if first["metric"] != "accuracy":
        return "labeled images"
    if len(profiles) > 1:
        return "labels per class;\ndashed: what is expected of twice as many"
    doubling = first["learning_curve"]["doubling"]
    value, low, high = (f"{100 * end:.1f}" for end in (doubling["value"], *doubling["interval"]))
    return f"labels per class; of twice as many\n{value} points more are expected ({low} to {high})"


def best_of(profile: Profile) -> dict[str, Any]:
    """Return the row of the best depth."""
    return next(depth for depth in profile["depths"] if depth["name"] == profile["best"])


def short_name(profile: Profile) -> str:
    """Return a network's name, without the folder where it lies."""
    return Path(profile["backbone"]).name


def factor_of(metric: str) -> float:
    """Return what a value of a metric is multiplied by to be shown."""
    return 100.0 if metric in SHARES else 1.0


def sign_of(metric: str) -> float:
    """Return -1 where less is better."""
    return -1.0 if metric.endswith("error") else 1.0
