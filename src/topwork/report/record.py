"""What a run leaves: its record as plain data, and the files beside it."""

from __future__ import annotations

import csv
import json
import os
import platform
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from topwork.data.audit import Audit
from topwork.data.image_set import ImageSet
from topwork.learn.fit import Fitted
from topwork.learn.metrics import evaluate
from topwork.network.folder import why_not_timm
from topwork.network.loading import Loaded

RECORD = "record.json"


def headline(
    probabilities: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], seed: int
) -> dict[str, Any]:
    """Return the metrics under ``test``, and the first of them on top."""
    metrics = evaluate(probabilities, labels, classes, seed=seed)
    accuracy = metrics["accuracy"]
    return {
        "metric": "accuracy",
        "value": accuracy["value"],
        "interval": accuracy["interval"],
        "n": accuracy["n"],
        "accuracy": accuracy["value"],
        "test": metrics,
    }


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
        "classes": list(images.classes),
        "plan": plan.to_dict(),
        "plan_in_words": plan.describe().splitlines(),
        "notes": notes_on(loaded, fitted, lost),
        "backbone": {
            "name": loaded.backbone.name,
            **loaded.backbone.spec.to_dict(),
            "preprocessing": loaded.backbone.preprocessing.to_dict(),
            "weights": loaded.weights,
            "accounting": accounting.describe() if accounting else "all layers are random",
            "license": loaded.backbone.about.get("license"),
        },
        "head": fitted.probe.record(),
        "data": audited.to_dict() | {"summary": audited.lines(), "lost_later": lost},
        "why_not_timm": why_not_timm(fitted.model, loaded),
        "timings": clock.laps,
        "machine": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": str(fitted.extractor.runtime.device),
        },
        "versions": {
            name: version(name)
            for name in ("topwork", "torch", "torchvision", "timm", "numpy", "pillow")
        },
    }


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
        *fitted.probe.notes,
        *(f"lost after the audit: {name}: {reason}" for name, reason in lost),
    ]


def write_split(path: Path, images: ImageSet, audited: Audit) -> None:
    """Write which image went to which side."""
    sides = audited.split.side_of()
    rows = (
        (item.name, " ".join(item.labels), sides.get(index, "none"), audited.digests[index] or "")
        for index, item in enumerate(images.items)
    )
    write_csv(path, ("name", "label", "side", "sha256"), rows)


def write_predictions(
    path: Path, images: ImageSet, tested: list[int], probabilities: np.ndarray
) -> None:
    """Write what the shipped model said about each test image."""
    rows = (
        (
            images.items[index].name,
            images.items[index].labels[0],
            images.classes[int(row.argmax())],
            f"{row.max():.6f}",
        )
        for index, row in zip(tested, probabilities, strict=True)
    )
    write_csv(path, ("name", "label", "predicted", "probability"), rows)


def write_csv(path: Path, header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    """Write a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON file for people and programs."""
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


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

    def total(self) -> float:
        """Return the seconds since the start."""
        return round(time.perf_counter() - self.start, 3)
