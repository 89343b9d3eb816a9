"""What a report says, section by section: from evidence to words, tables and charts.

Everything here is plain: the templates only lay it out, as a page or as Markdown.
"""

from __future__ import annotations

import shlex
from itertools import groupby
from pathlib import PurePath, PurePosixPath
from typing import Any

from topwork.data.image_set import name_a_few
from topwork.plan import HEADS_IN_WORDS
from topwork.report.advised import advised
from topwork.report.charts import interval
from topwork.report.judged import calibrated, classes, labels, numbers
from topwork.report.scales import Scale
from topwork.report.terminal import METRICS, trunk_use
from topwork.report.training import phases
from topwork.report.words import (
    UNIT,
    Code,
    amount,
    counted,
    limits,
    listed,
    metric_name,
    percent,
    seconds,
)

SIDES = {"train": "train", "val": "validation", "test": "test"}
MOST_CLASSES = 100  # listed
MOST_LOST = 100  # images, likewise


def sections(evidence: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return all that a report says.

    Args:
        evidence: as `topwork.report.evidence.evidence_of` makes it.
        folder: the run folder, as commands call it.
    """
    record = evidence["record"]
    test = record["test"]
    return {
        "title": title(record),
        "created": record["created"].replace("T", " ").replace("+00:00", " UTC"),
        "lede": lede(record),
        "hero": hero(record),
        "facts": facts(record),
        "metrics": metrics(test),
        "notes": notes(record),
        "plan": record["plan_in_words"],
        "strips": strips(record, evidence["axis"]),
        "advice": advised(record["advice"]) if record.get("advice") else None,
        "phases": phases(record),
        "classes": classes(test) if "confusion" in test else None,
        "labels": labels(test) if "per_label" in test else None,
        "numbers": numbers(test, evidence["numbers"]) if "per_number" in test else None,
        "calibration": calibrated(evidence["calibration"], test),
        "worst": [captioned(row, record["metric"]) for row in evidence["worst"]],
        "surest": [captioned(row, record["metric"]) for row in evidence["surest"]],
        "views": evidence["views"],
        "size": record["backbone"]["preprocessing"]["size"],
        "data": data(record["data"]),
        "run": run(record),
        "use": use(record, folder),
    }


def title(record: dict[str, Any]) -> str:
    """Return the name of the data."""
    location = record["data"]["location"]
    return PurePath(location).name or location


def lede(record: dict[str, Any]) -> str:
    """Say in a sentence what was learned, and with what."""
    head = HEADS_IN_WORDS[record["plan"]["head"]]
    names = record["classes"]
    what = {
        "accuracy": f"{counted(len(names), 'class')} ({listed(names, 4)})",
        "mean_average_precision": f"{counted(len(names), 'label')} ({listed(names, 4)})",
        "mean_absolute_error": listed(names, 4),
    }[record["metric"]]
    backbone = PurePath(record["backbone"]["name"]).name
    return f"Learned: {what}. {head[0].upper()}{head[1:]} on {backbone}."


def hero(record: dict[str, Any]) -> dict[str, Any]:
    """Return the headline: the value with its interval in words, and what it was measured on."""
    metric, n = record["metric"], record["n"]
    on_scale = metric in UNIT
    ends = record["interval"]
    sure = f"95 % interval {limits(metric, ends)}" if ends else "no interval"
    if metric == "accuracy":
        right = round(record["value"] * n)
        sure = f"{right:,} of {n:,} test images right; {sure}"
    else:
        sure = f"{counted(n, 'test image')}; {sure}"
    if groups := record["test"].get("groups"):
        sure += f", which takes the images of each of {counted(groups, 'group')} together"
    guess, guessed = guessing(record)
    return {
        "metric": metric_name(metric),
        "value": amount(metric, record["value"]),
        "sure": sure,
        "range": interval(record, Scale(0, 1)) if on_scale else None,
        "guess": None if guess is None else Scale(0, 1).place(guess),
        "guessed": guessed,
        "doubtful": guess is not None and ends is not None and ends[0] <= guess,
        "honest": honest(record),
    }


def guessing(record: dict[str, Any]) -> tuple[float | None, str]:
    """Return what one reaches without looking at any image, and a sentence that says so."""
    test, n = record["test"], record["n"]
    if record["metric"] == "accuracy":
        confusion = test["confusion"]
        members = [sum(row) for row in confusion["counts"]]
        share, name = max(zip(members, confusion["classes"], strict=True))
        return share / n, f"Always answering “{name}” would be right for {percent(share / n)}."
    if record["metric"] == "mean_average_precision":
        chances = [chance_precision(row["n"], n) for row in test["per_label"] if row["n"]]
        if not chances:
            return None, "No test image has any label."
        chance = sum(chances) / len(chances)
        return chance, f"Ranking by chance would reach {chance:.3f}."
    r2 = test["r2"]["value"]
    if r2 is None:
        return None, "The true numbers are all the same."
    return None, f"It explains {percent(max(r2, 0.0))} of the variance of the true numbers."


def chance_precision(positives: int, n: int) -> float:
    """Return the average precision that a random ranking has on average (Bestgen 2015).

    With few images it lies well above the share of positive ones: the first hit is found at some
    rank, and all that are above it count.

    >>> chance_precision(1, 4)  # the mean of 1, 1/2, 1/3 and 1/4
    0.5208333333333333
    """
    if n == 1:
        return 1.0
    first = sum(1 / rank for rank in range(1, n + 1)) / n
    return first + (positives - 1) / (n - 1) * (1 - first)


def honest(record: dict[str, Any]) -> str:
    """Say what the headline was measured on."""
    split = record["data"]["split"]
    held_out = (
        "the test part as the data gives it"
        if split["origin"] == "given"
        else "a part held out by a hash of each image"
    )
    return (
        f"Measured once, with the model folder that lies beside this page, on {held_out}: no choice"
        " was made by these images. It holds for images that are drawn as they were."
    )


def facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the run in a few words."""
    plan, sizes = record["plan"], record["data"]["split"]["sizes"]
    height, width = record["backbone"]["preprocessing"]["size"]
    learned = sizes["train"] + sizes["val"]
    return [
        ("network", PurePath(record["backbone"]["name"]).name),
        ("kept up to", plan["kept"]),
        ("head", plan["head"]),
        ("learned from", counted(learned, "image")),
        ("seen at", f"{height}x{width} pixels"),
        ("took", seconds(record["seconds"])),
    ]


def metrics(test: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each metric with its interval."""
    return [
        {
            "name": METRICS[name],
            "value": amount(name, test[name]["value"]),
            "interval": limits(name, test[name]["interval"]),
            "n": f"{test[name]['n']:,}",
            "range": interval(test[name], Scale(0, 1)) if name in UNIT else None,
        }
        for name in METRICS
        if name in test
    ]


def strips(record: dict[str, Any], axis: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what each phase does with the layers, from the input to the top, as runs of layers.

    Of a phase that unfroze step by step it is what it kept in the end; where a phase was no better
    than what was before it, its weights were not kept.
    """
    plan = record["plan"]
    depth_of = {cut["name"]: cut["depth"] for cut in axis}
    top = axis[-1]["depth"]
    kept, reused = depth_of[plan["kept"]], depth_of[plan["reused"]]
    found = []
    for number, phase in enumerate(plan["phases"]):
        frozen = phase["frozen"]
        ran = record["phases"][number] if number < len(record["phases"]) else {}
        lasting = ran.get("improved", True)
        if ran.get("gradual"):
            frozen, lasting = ran["chosen"] or ran["frozen"], bool(ran["chosen"])
        above = "trained" if lasting else "tried, not kept"

        def state(depth: int, frozen: int = depth_of[frozen], above: str = above) -> str:
            if depth > kept:
                return "dropped"
            return ("frozen" if depth <= frozen else above) + (
                "" if depth <= reused else ", from random weights"
            )

        runs = [(what, len(list(depths))) for what, depths in groupby(range(1, top + 1), key=state)]
        found.append(
            {
                "name": f"Phase {number + 1}",
                "layers": [run for run in runs if run[0] != "dropped"],
                "dropped": sum(length for what, length in runs if what == "dropped"),
                "lasting": lasting,
                "added": len(plan["added"]),
            }
        )
    return found


def captioned(row: dict[str, Any], metric: str) -> dict[str, Any]:
    """Return a picture of a test image with what was said and what is true."""
    said, true = row["said"] or "nothing", row["true"] or "nothing"
    if metric == "accuracy":
        lines = [(said, percent(row["probability"], 0))]
        if not row["right"]:
            lines.append((f"is {true}", percent(row["true_probability"], 0)))
    elif metric == "mean_average_precision":
        lines = [(said, "")]
        if not row["right"]:
            lines.append((f"is {true}", ""))
            lines.append((f"gives {row['label']}", percent(row["probability"], 0)))
    else:
        lines = [(f"said {said}", ""), (f"is {true}", "")]
    file = PurePosixPath(row["name"]).name
    return {
        "name": Code(row["name"]),
        "file": Code(file),
        "image": row["image"],
        "lines": lines,
    }


def data(found: dict[str, Any]) -> dict[str, Any]:
    """Return what the audit found."""
    sides = [side for side in SIDES if found["split"]["sizes"][side]]
    rows = sorted(found["counts"].items(), key=lambda row: -row[1]["train"])
    most = max([count for _, counts in rows for count in counts.values()], default=1) or 1
    return {
        "summary": found["summary"][0],
        "findings": found["summary"][1:],
        "sides": [SIDES[side] for side in sides],
        "rows": [
            {
                "name": name,
                "counts": [f"{counts[side]:,}" for side in sides],
                "share": round(1000 * counts["train"] / most),
            }
            for name, counts in rows[:MOST_CLASSES]
        ],
        "more": max(0, len(rows) - MOST_CLASSES),
        "lost": [(Code(name), reason) for name, reason in found["lost_later"][:MOST_LOST]],
        "all_lost": len(found["lost_later"]),
    }


def notes(record: dict[str, Any]) -> list[str]:
    """Return the record's notes; on images that were lost a single one, however many they are."""
    lost = record["data"]["lost_later"]
    each = {f"lost after the audit: {name}: {reason}" for name, reason in lost}
    others = [note for note in record["notes"] if note not in each]
    if not lost:
        return others
    names = name_a_few([name for name, _ in lost])
    return [*others, f"{counted(len(lost), 'image')} lost after the audit: {names}"]


def run(record: dict[str, Any]) -> dict[str, Any]:
    """Return how the run came about: steps, machine, versions, command."""
    timings, machine, cached = record["timings"], record["machine"], record["cached_codes"]
    use = trunk_use(record)
    longest = max(timings.values(), default=0) or 1
    weights = record["backbone"]["weights"]
    return {
        "steps": [
            {"name": name, "seconds": seconds(took), "share": round(1000 * took / longest)}
            for name, took in timings.items()
        ],
        "facts": [
            ("command", Code(shlex.join(record["command"]))),
            ("seed", str(record["seed"])),
            ("machine", f"{machine['platform']}, {counted(machine['cores'], 'core')}"),
            ("device", machine["device"]),
            ("Python", machine["python"]),
            ("versions", ", ".join(f"{name} {v}" for name, v in record["versions"].items())),
            ("weights", Code(weights["file"]) if weights else "none: all layers began at random"),
            *([("their SHA-256", weights["sha256"])] if weights else []),
            ("tensors", record["backbone"]["accounting"]),
        ],
        "cache": f"{use[:1].upper()}{use[1:]}.",
        "compared": (
            f"{counted(cached['compared'], 'test image')} went by way of the cache too:"
            f" {metric_name(record['metric'])} {amount(record['metric'], cached['value'])} there,"
            f" {amount(record['metric'], cached['shipped'])} as shipped; no answer differs by more"
            f" than {cached['largest_difference']:.2g}."
        ),
    }


def use(record: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return how the model in a run folder is used, and under what license its network came."""
    quoted, model = shlex.quote(folder), str(PurePath(folder) / "model")
    ways = [
        ("From the command line", f"topwork predict {quoted} IMAGE..."),
        (
            "From Python",
            f"import topwork\n\nmodel = topwork.load({folder!r})\nmodel.predict(['photo.jpg'])",
        ),
    ]
    if record["why_not_timm"] is None:
        ways.append(
            (
                "In timm, without topwork",
                "import timm\n\nnetwork = timm.create_model("
                f"{'local-dir:' + model!r}, pretrained=True)",
            )
        )
    ways += [
        ("Score it on other images", f"topwork eval {quoted} DATA"),
        ("Export it", f"topwork export {quoted} --format onnx"),
    ]
    return {
        "ways": [(what, Code(code)) for what, code in ways],
        "why_not_timm": record["why_not_timm"],
        "license": terms(record["backbone"]),
    }


def terms(backbone: dict[str, Any]) -> str:
    """Return what is to be known before a model is passed on, from the record of its backbone.

    >>> terms({"weights": None, "license": "mit"})
    'All weights were learned from these images: look up their terms before you pass the model on.'
    >>> "is mit; what" in terms({"weights": {}, "license": "mit"})
    True
    >>> terms({"weights": {}, "license": None, "made_from": "scans"})[:43]
    'The network was pretrained on scans alone: '
    >>> terms({"weights": {}, "license": None})[:20]
    'No license is known '
    """
    license_name, images = backbone["license"], backbone.get("made_from")
    if backbone["weights"] is None:
        which = "All weights were learned from these images: look up their terms"
    elif license_name:
        return (
            "The license of the network's pretrained weights, or of those that they were made"
            f" from, is {license_name}; what was learned on top of them is bound by it, and by the"
            " terms of the images."
        )
    elif images:
        which = f"The network was pretrained on {images} alone: look up the terms of all images"
    else:
        which = "No license is known for the network's pretrained weights: find out"
    return f"{which} before you pass the model on."
