"""How a report writes numbers: shares in percent, times with their unit, counts with their noun."""

from __future__ import annotations

import re
from typing import Any

from topwork.report.terminal import METRICS, decimal

SHARES = (
    "accuracy",
    "balanced_accuracy",
    "f1",
    "exact_match",
    "label_accuracy",
    "recall",
    "precision",
)
"""Metrics that are shown in percent."""

UNIT = (*SHARES, "mean_average_precision", "roc_auc", "average_precision", "calibration_error")
"""Metrics from 0 to 1."""

MINUS = "\N{MINUS SIGN}"
TURNS = re.compile("[\u202a-\u202e\u2066-\u2069]")
"""Characters that change the direction of what follows them."""


class Code(str):
    """A command, or the name of a file: shown as it can be copied."""


def visible(text: str) -> str:
    r"""Write characters that turn text around as their escapes, so that none hides what is said.

    >>> print(visible("\u202egpj.exe"))
    \u202egpj.exe
    """
    return TURNS.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def percent(share: float, digits: int = 1) -> str:
    """Write a share in percent.

    >>> percent(0.9542), percent(1, 0)
    ('95.4 %', '100 %')
    """
    return f"{100 * share:.{digits}f} %"


def amount(metric: str, value: float | None) -> str:
    """Write the value of a metric; a dash where it is not defined.

    >>> amount("accuracy", 0.5), amount("log_loss", 0.5), amount("r2", None)
    ('50.0 %', '0.500', '-')
    """
    if value is None:
        return "-"
    return percent(value) if metric in SHARES else decimal(value)


def limits(metric: str, interval: list[float] | None) -> str:
    """Write an interval of a metric, its unit once.

    >>> limits("accuracy", [0.5, 0.75]), limits("log_loss", [0.5, 0.75])
    ('50.0 to 75.0 %', '0.500 to 0.750')
    """
    if interval is None:
        return "-"
    low, high = (amount(metric, end) for end in interval)
    return f"{low.removesuffix(' %')} to {high}"


def difference(metric: str, row: dict[str, Any] | None) -> str:
    """Write a difference of two values of a metric with its interval; a dash where there is none.

    >>> difference("accuracy", {"value": -0.012, "interval": [-0.03, 0.004]})
    '\u22121.2 points (\u22123.0 to +0.4)'
    """
    if row is None or row.get("value") is None:
        return "-"
    shares = metric in SHARES
    value, *ends = (signed(end, shares) for end in (row["value"], *(row.get("interval") or ())))
    unit = " points" if shares else ""
    return f"{value}{unit}" + (f" ({ends[0]} to {ends[1]})" if ends else "")


def signed(value: float, share: bool) -> str:
    """Write a number with its sign; a share in percent points.

    >>> signed(-0.05, share=True), signed(0.05, share=False), signed(0.0, share=True)
    ('\u22125.0', '+0.050', '0.0')
    """
    text = f"{100 * value:+.1f}" if share else f"{value:+.3f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def seconds(value: float | None) -> str:
    """Write a time; a dash where it is not known.

    >>> seconds(8.06), seconds(120), seconds(125), seconds(7300), seconds(None)
    ('8.1 s', '2 min', '2 min 5 s', '2 h 1 min', '-')
    """
    if value is None:
        return "-"
    if value < 100:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


def counted(count: int, noun: str) -> str:
    """Write a count with its noun.

    >>> counted(1, "image"), counted(2000, "image"), counted(3, "class")
    ('1 image', '2,000 images', '3 classes')
    """
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def listed(names: list[str], most: int = 3) -> str:
    """Name a few of many.

    >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c", "d"])
    ('a', 'a and b', 'a, b, c and 1 more')
    """
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def sentence(text: str) -> str:
    """Begin with a capital letter and end with a full stop.

    >>> sentence("few images"), sentence("Few images.")
    ('Few images.', 'Few images.')
    """
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def gain_in_words(profile: dict[str, Any]) -> str:
    """Say at which depth the loss of a profile is least, and what that is worth against the top.

    >>> gain_in_words({"metric": "accuracy", "best": "norm", "top": "norm", "gain": None})
    'least loss: norm, the top'
    """
    best, top, gain = profile["best"], profile["top"], profile["gain"]
    if best == top:
        return f"least loss: {best}, the top"
    if gain is None:
        return f"least loss: {best}; the top is {top}"
    what = "" if profile["metric"] == "accuracy" else " of right labels"
    apart = "" if gain["told_apart"] else ", not to be told apart from none"
    return (
        f"least loss: {best}; gain over the top, {top}: {difference('accuracy', gain)}{what}{apart}"
    )


def metric_name(metric: str) -> str:
    """Return what people call a metric.

    >>> metric_name("mean_absolute_error")
    'mean absolute error'
    """
    return METRICS.get(metric, metric.replace("_", " "))
