"""What a run leaves: its record as plain data, and the files beside it."""

from __future__ import annotations

import csv
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from topwork.data.audit import Audit
from topwork.data.image_set import ImageSet
from topwork.learn.fit import Fitted
from topwork.learn.label_metrics import evaluate_labels
from topwork.learn.metrics import evaluate as evaluate_classes
from topwork.learn.number_metrics import evaluate_numbers
from topwork.learn.targets import Targets, names_of
from topwork.network.answers import conclusions
from topwork.network.folder import why_not_timm
from topwork.network.loading import Loaded

RECORD, SPLIT = "record.json", "split.csv"


HEADLINES = {
    "classes": "accuracy",
    "labels": "mean_average_precision",
    "numbers": "mean_absolute_error",
}


def given_groups(images: ImageSet, indices: Sequence[int]) -> np.ndarray | None:
    """Return what belongs together of some images, [n]; None where the data give no groups.

    An image without a group stands alone.
    """
    groups = [images.items[index].group for index in indices]
    if not any(groups):
        return None
    own = zip(indices, groups, strict=True)
    return np.array([f"group {group}" if group else f"image {index}" for index, group in own])


def results(
    answers: np.ndarray, targets: Targets, seed: int, groups: np.ndarray | None = None
) -> dict[str, Any]:
    """Return the metrics under ``test``, and one of them on top, by the kind of targets.

    Args:
        answers: [n, names], as a predictor gives them.
        targets: of the same images.
        seed: of the intervals.
        groups: [n] what belongs together, as photos of one person do; None if each image stands
            alone.
    """
    known = targets.answered()
    evaluate = {"classes": evaluate_classes, "labels": evaluate_labels, "numbers": evaluate_numbers}
    metrics = evaluate[known.kind](answers, known.values, known.names, seed=seed, groups=groups)
    metric = HEADLINES[known.kind]
    accuracy = {"accuracy": metrics[metric]["value"]} if known.kind == "classes" else {}
    return {"metric": metric, **metrics[metric], **accuracy, "test": metrics}


def facts_of_fit(
    loaded: Loaded,
    fitted: Fitted,
    audited: Audit,
    images: ImageSet,
    lost: list[tuple[str, str]],
    clock: Clock,
    seed: int,
) -> dict[str, Any]:
    """Return what a record says about how its run came about."""
    accounting = loaded.accounting
    plan = loaded.plan
    return {
        "format": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "seed": seed,
        "classes": list(names_of(images, plan.head)),
        "plan": plan.to_dict(),
        "plan_in_words": plan.describe().splitlines(),
        "notes": notes_on(loaded, fitted, lost),
        "backbone": {
            "name": loaded.backbone.name,
            **loaded.backbone.spec.to_dict(),
            "preprocessing": loaded.backbone.preprocessing.to_dict(),
            "weights": loaded.weights,
            "accounting": accounting.describe() if accounting else "all layers are random",
            "license": loaded.backbone.about.get("license") if loaded.weights else None,
            "made_from": images_alone(loaded.backbone.about),
        },
        "head": probes[-1] if (probes := probes_of(fitted)) else None,
        "phases": list(fitted.records),
        "data": audited.to_dict() | {"summary": audited.lines(), "lost_later": lost},
        "why_not_timm": why_not_timm(fitted.model, loaded),
        "timings": clock.laps,
        "machine": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": str(fitted.samples.execution.device),
        },
        "versions": {
            name: version(name)
            for name in ("topwork", "torch", "torchvision", "timm", "numpy", "pillow")
        },
    }


def images_alone(card: Mapping[str, Any]) -> str | None:
    """Return what images a backbone was made from; None if nobody says, or of other weights too.

    >>> images_alone({"method": "gan", "source": "scans", "started_from": None})
    'scans'
    >>> images_alone({"method": "distill", "source": "scans", "teacher": {"name": "large"}})
    """
    others = card.get("started_from") or card.get("teacher")
    return card.get("source") if "method" in card and not others else None


def notes_on(loaded: Loaded, fitted: Fitted, lost: list[tuple[str, str]]) -> list[str]:
    """Return what a reader of the record should know, one sentence each.

    Codes may be taken just before the source network would threshold them; the probe has notes of
    its own; images may be lost after the audit.
    """
    cuts = [loaded.chain.resolve(name) for name in loaded.plan.codes]
    return [
        *(
            f"codes at {cut.name} are taken before {cut.before}: they are not thresholded as the"
            " source's next layer sees them"
            for cut in cuts
            if cut.before
        ),
        *(note for probe in probes_of(fitted) for note in probe["notes"]),
        *(f"lost after the audit: {name}: {reason}" for name, reason in lost),
    ]


def probes_of(fitted: Fitted) -> list[dict[str, Any]]:
    """Return the records of how a head was chosen and solved for, phase by phase."""
    return [record["probe"] for record in fitted.records if "probe" in record]


def write_split(run: Path, images: ImageSet, audited: Audit) -> None:
    """Write into a run folder which image went to which side."""
    sides = audited.split.side_of()
    rows = (
        (item.name, in_words(item.labels), sides.get(index, "none"), audited.digests[index] or "")
        for index, item in enumerate(images.items)
    )
    write_csv(run / SPLIT, ("name", "label", "side", "sha256"), rows)


def digests_learned(run: Path) -> set[str] | None:
    """Return the SHA-256 of the images that a run learned from; None if its folder has no split."""
    try:
        with (run / SPLIT).open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            return {row["sha256"] for row in rows if row["side"] in ("train", "val")}
    except (OSError, KeyError):
        return None


def write_predictions(
    path: Path,
    images: ImageSet,
    tested: Sequence[int],
    answers: np.ndarray,
    targets: Targets,
) -> None:
    """Write what the shipped model said about each test image.

    Args:
        path: the CSV file to write.
        images: the data.
        tested: the images.
        answers: [tested, names], as a predictor gives them.
        targets: of these images.
    """
    known = targets.answered()
    header = {"classes": ("probability",), "labels": known.names, "numbers": ()}[known.kind]
    rows = []
    said = conclusions(known.kind, known.names, answers)
    for index, row, answer in zip(tested, answers, said, strict=True):
        item = images.items[index]
        shown = {"classes": [row.max()], "labels": row, "numbers": []}[known.kind]
        predicted = in_words(answer if isinstance(answer, tuple) else (answer,))
        cells = (f"{probability:.6f}" for probability in shown)
        rows.append((item.name, in_words(item.labels), predicted, *cells))
    write_csv(path, ("name", "label", "predicted", *header), rows)


def in_words(parts: Sequence[str | float]) -> str:
    """Write labels or numbers in one cell; numbers to the seven digits of single precision.

    >>> in_words(("wet", "cold")), in_words((112.83956146240234,))
    ('wet;cold', '112.8396')
    """
    return ";".join(part if isinstance(part, str) else f"{part:.7g}" for part in parts)


def write_csv(path: Path, header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    """Write a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON file for people and programs, with nothing in it that only Python reads."""
    path.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")


class Clock:
    """Seconds since the start, and by lap."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Note the seconds since the last lap."""
        now = time.perf_counter()
        self.laps[name] = round(now - self.last, 3)
        self.last = now

    def begin_earlier(self, seconds: float) -> None:
        """Count what was done in so many seconds before an interruption into this lap."""
        self.start -= seconds
        self.last -= seconds

    def total(self) -> float:
        """Return the seconds since the start."""
        return round(time.perf_counter() - self.start, 3)
