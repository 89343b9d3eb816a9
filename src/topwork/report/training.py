"""What a report says of the phases: curves by epoch and depth, strengths of a head tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from topwork.report.charts import Chart, Mark, by_name, curve
from topwork.report.scales import Point, Scale, linear, logarithmic, of_numbers, of_shares, power
from topwork.report.words import amount, counted, limits, metric_name, percent, seconds

CURVES = (
    "Held out: images that are not learned from, their loss at the temperature that suits it best;"
    " epoch 0 is before the phase. Learned from: the loss as it was brought down, with smoothed"
    " labels and mixed or augmented images where the plan has such."
)


def phases(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what became of each phase, with its charts."""
    found = []
    shares = record["metric"] != "mean_absolute_error"  # of answers that are right
    for number, phase in enumerate(record["phases"], 1):
        name = "At last" if phase.get("at_last") else f"Phase {number}"
        if "probe" in phase:
            found.append({"name": name, **solved(phase)})
        elif phase.get("gradual"):
            found.append({"name": name, **unfrozen(phase, shares=shares)})
        else:
            found.append({"name": name, **trained(phase, shares=shares)})
    return found


def solved(phase: dict[str, Any]) -> dict[str, Any]:
    """Return how a head was solved for: the loss at each strength tried."""
    probe = phase["probe"]
    out_of_fold, rows = probe["out_of_fold"], probe["table"]
    metric = out_of_fold["metric"]
    words = (
        f"The head was solved for on {counted(phase['images'], 'image')}"
        f" ({seconds(phase['seconds'])}). {metric_name(metric).capitalize()}"
        f" {amount(metric, out_of_fold['value'])}"
        f" ({limits(metric, out_of_fold['interval'])}) out of fold; the strength was chosen by"
        " these folds, so that flatters a little."
    )
    if len(rows) < 2:
        return {"words": words, "charts": [], "caption": ""}
    x = logarithmic([row["strength"] for row in rows], power)
    losses = [(row["strength"], row["loss"], None) for row in rows]
    y = of_numbers(losses)

    def said(number: int) -> str:
        return f"strength {losses[number][0]:.2g}: loss {losses[number][1]:.4f}"

    chosen = rows[probe["chosen"]]["strength"]
    chart = Chart(
        title="Loss by strength of the penalty",
        x_title="strength; the head is freer to the left",
        x_ticks=x.ticks,
        y_ticks=y.ticks,
        curves=(curve("loss out of fold", "main", losses, x, y, said),),
        marks=(Mark(x.place(chosen), "chosen"),),
    )
    return {"words": words, "charts": [chart], "caption": ""}


def trained(phase: dict[str, Any], *, shares: bool) -> dict[str, Any]:
    """Return how a phase was trained.

    Args:
        phase: its record.
        shares: whether answers can be right, as those of numbers cannot.
    """
    best = phase["best"]
    text = (
        f"{counted(len(phase['epochs']), 'epoch')} on {counted(phase['images'], 'image')}"
        f" ({seconds(phase['seconds'])})."
    )
    if best:
        text += (
            f" {counted(phase['held_out'], 'image')} were held out to choose:"
            f" {scored(best)} after epoch {best['epoch']}, the best."
        )
        if not phase["improved"]:
            text += " That is not beyond chance: the weights from before were kept."
    if phase["stopped"]:
        text += f" Stopped: {phase['stopped']}."
    marks = [(best["epoch"], "best" if phase["improved"] else "before")] if best else []
    charts = by_epoch(phase["epochs"], phase["start"], marks, shares=shares)
    return {"words": text, "charts": charts, "caption": CURVES}


def scored(best: dict[str, Any]) -> str:
    """Say how well the best epoch did on held-out images."""
    accuracy = best["accuracy"]["value"]
    return f"loss {best['loss']:.3f}" if accuracy is None else f"{percent(accuracy)} right"


def unfrozen(phase: dict[str, Any], *, shares: bool) -> dict[str, Any]:
    """Return how layers were unfrozen step by step: held-out results by depth, then the epochs.

    Args:
        phase: its record.
        shares: as in `trained`.
    """
    steps = [{"frozen": "before", "interval": None, **phase["start"]}, *phase["curve"]]
    names = [step["frozen"] for step in steps]
    chosen = names.index(phase["chosen"] or "before")
    kept = f"frozen up to {names[chosen]}" if chosen else "the weights from before"
    right = [
        (number, step["accuracy"], step["interval"])
        for number, step in enumerate(steps)
        if shares and step["accuracy"] is not None
    ]
    losses = [(number, step["loss"], None) for number, step in enumerate(steps)]

    def by_depth(
        title: str,
        points: Sequence[Point],
        scale: Callable[[Sequence[Point]], Scale],
        words: Callable[[float], str],
    ) -> Chart:
        return by_name(
            title,
            "frozen up to, each step lower",
            names,
            "second",
            points,
            scale(points),
            lambda place: f"{names[int(points[place][0])]}: {words(points[place][1])}",
            {chosen: "kept"},
        )

    charts = [by_depth("Held-out loss, by depth", losses, of_numbers, "{:.3f}".format)]
    if right:
        charts.append(by_depth("Held-out images right, by depth", right, of_shares, percent))
    return {
        "words": (
            f"Unfrozen step by step, {counted(len(phase['curve']), 'step')}"
            f" ({seconds(phase['seconds'])}); kept: {kept}."
        ),
        "charts": [*charts, *by_epoch(phase["epochs"], None, [], shares=shares)],
        "caption": CURVES,
    }


def by_epoch(
    epochs: list[dict[str, Any]],
    start: dict[str, Any] | None,
    marks: list[tuple[int, str]],
    *,
    shares: bool,
) -> list[Chart]:
    """Return the charts of a training: loss, and where there is such a thing, accuracy.

    Args:
        epochs: one after another; steps of a gradual phase simply follow each other.
        start: held-out results before the first.
        marks: epochs to point out.
        shares: as in `trained`.
    """
    if not epochs:
        return []
    first = [{"place": 0, **start}] if start else []
    after = [
        {
            "place": place,
            "loss": epoch.get("tempered_loss", epoch["validation_loss"]),
            "accuracy": epoch["validation_accuracy"],
        }
        for place, epoch in enumerate(epochs, 1)
    ]
    learned = [{"place": place, **epoch} for place, epoch in enumerate(epochs, 1)]
    x = linear([0 if start else 1, len(epochs)], least=0, most=len(epochs))
    whole = tuple(tick for tick in x.ticks if "." not in tick.label.removesuffix(".0"))
    x = replace(x, ticks=tuple(replace(t, label=t.label.removesuffix(".0")) for t in whole))
    lines = tuple(Mark(x.place(epoch), word) for epoch, word in marks)
    charts = []
    for title, key, scale, words in (
        ("Loss by epoch", "loss", of_numbers, "{:.3f}".format),
        *([("Images right, by epoch", "accuracy", of_shares, percent)] if shares else []),
    ):
        found = {
            ("learned from", "faint"): points_of(learned, key),
            ("held out", "second"): points_of([*first, *after], key),
        }
        points = [point for each in found.values() for point in each]
        if not points:
            continue
        y = scale(points)
        curves = (
            curve(name, color, each, x, y, by_number(each, words))
            for (name, color), each in found.items()
            if each
        )
        charts.append(Chart(title, "epoch", x.ticks, y.ticks, tuple(curves), lines))
    return charts


def points_of(rows: list[dict[str, Any]], key: str) -> list[Point]:
    """Return the points of a curve by epoch, without those that have no such value."""
    return [(row["place"], row[key], None) for row in rows if row[key] is not None]


def by_number(points: list[Point], words: Callable[[float], str]) -> Callable[[int], str]:
    """Return what is said about the points of a curve by epoch."""
    return lambda number: f"epoch {points[number][0]:g}: {words(points[number][1])}"
