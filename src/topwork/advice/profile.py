"""The profile: accuracy of a linear probe at every depth, from one pass over the images."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from topwork.advice.comparison import (
    ONE_STANDARD_ERROR,
    Difference,
    paired_difference,
    standard_errors_above,
)
from topwork.advice.depth_codes import DepthCodes
from topwork.advice.learning_curve import LearningCurve, learning_curve
from topwork.data.loading import Track, untracked
from topwork.errors import UsageError
from topwork.learn.heads import STRENGTHS
from topwork.learn.judging import Judged, judge
from topwork.learn.targets import Targets
from topwork.network.chain import CutPoint
from topwork.network.loading import Loaded

Array = np.ndarray

HEADS_FOR = {
    "classes": ("softmax", "ridge"),
    "labels": ("sigmoid",),
    "numbers": ("regression",),
}
"""The heads that each kind of targets is probed with; the first can be trained on, too."""


@dataclass(frozen=True, eq=False)
class DepthResult:
    """How linear probes do on the codes of one depth.

    Attributes:
        cut: where.
        pool: how its tensor becomes a code.
        columns: of the code.
        judged: by kind of head, all on the same folds.
        head: the kind to use here: the first, unless another one's loss is lower by more than one
            standard error.
    """

    cut: CutPoint
    pool: str
    columns: int
    judged: dict[str, Judged]
    head: str

    @property
    def best(self) -> Judged:
        """What the head to use does."""
        return self.judged[self.head]

    def record(self) -> dict[str, Any]:
        """Return plain data."""
        found = self.best.out_of_fold
        accuracy = {"accuracy": found["value"]} if found["metric"] == "accuracy" else {}
        return {
            "name": self.cut.name,
            "depth": self.cut.depth,
            "stage_end": self.cut.stage_end,
            "parameters": self.cut.parameters,
            "multiply_adds": self.cut.multiply_adds,
            "pool": self.pool,
            "columns": self.columns,
            "head": self.head,
            **accuracy,
            "value": found["value"],
            "interval": found["interval"],
            "n": found["n"],
            "loss": self.best.best.loss,
            "heads": {
                kind: {
                    "value": judged.out_of_fold["value"],
                    "interval": judged.out_of_fold["interval"],
                    "loss": judged.best.loss,
                    "strength": judged.best.strength,
                }
                for kind, judged in self.judged.items()
            },
        }


@dataclass(frozen=True, eq=False)
class Profile:
    """Accuracy by depth, and by number of labels at the best depth.

    Attributes:
        loaded: the network.
        targets: of the images that were probed.
        groups: [n] what is never divided between folds.
        codes: what the probes read.
        depths: from the lowest up.
        curve: at the best depth.
        seed: of the folds.
        seconds: of collecting the codes and of the probes.
    """

    loaded: Loaded
    targets: Targets
    groups: Array
    codes: DepthCodes
    depths: tuple[DepthResult, ...]
    curve: LearningCurve
    seed: int
    seconds: dict[str, float]

    @property
    def top(self) -> DepthResult:
        """The uppermost depth."""
        return self.depths[-1]

    @property
    def best(self) -> DepthResult:
        """The depth with the least loss."""
        return best_of(self.depths)

    def gain(self) -> Difference | None:
        """Return how much more accurate the best depth is than the top; None for numbers."""
        best, top = self.best.best, self.top.best
        if best.right is None or top.right is None:
            return None
        return paired_difference(best.right, top.right, self.groups[best.rows])

    def at(self, name: str) -> DepthResult:
        """Return the result at the cut point of a name."""
        return next(depth for depth in self.depths if depth.cut.name == name)

    def majority(self) -> float | None:
        """Return the share of the most frequent class; None where there are no classes."""
        if self.targets.kind != "classes":
            return None
        return float(np.bincount(self.targets.values).max() / len(self.targets.values))

    def record(self) -> dict[str, Any]:
        """Return plain data."""
        chain, backbone = self.loaded.chain, self.loaded.backbone
        gain = self.gain()
        notes = dict.fromkeys(
            f"at {depth.cut.name}: {note}" for depth in self.depths for note in depth.best.notes
        )
        majority = self.majority()
        return {
            "backbone": backbone.name,
            "metric": self.best.best.out_of_fold["metric"],
            "input_size": list(backbone.preprocessing.size),
            "license": backbone.about.get("license"),
            "parameters": chain.resolve(self.loaded.plan.kept or 0).parameters,
            "images": len(self.targets.values),
            "classes": list(self.targets.names),
            "majority": majority,
            "folds": self.best.best.folds_evaluated,
            "depths": [depth.record() for depth in self.depths],
            "top": self.top.cut.name,
            "best": self.best.cut.name,
            "gain": gain.record() if gain else None,
            "learning_curve": {
                "depth": self.best.cut.name,
                "head": self.best.head,
                **self.curve.record(),
            },
            "notes": [
                *notes,
                *(f"not read: {reason}" for reason in self.codes.lost.values()),
            ],
            "timings": self.seconds,
        }


def best_of(depths: tuple[DepthResult, ...]) -> DepthResult:
    """Return the depth with the least loss, the lower one of equals."""
    return min(depths, key=lambda depth: (depth.best.best.loss, depth.cut.depth))


def make_profile(
    loaded: Loaded,
    targets: Targets,
    groups: Array,
    codes: DepthCodes,
    *,
    seed: int = 0,
    collected: float = 0.0,
    track: Track = untracked,
) -> Profile:
    """Probe the codes of every depth on the same folds, then the best depth on fewer labels.

    Args:
        loaded: the network that the codes come from.
        targets: of the images that have codes.
        groups: [n] what must not be divided between folds.
        codes: of these images.
        seed: of the folds.
        collected: seconds that collecting the codes took, for the record.
        track: shows progress.

    Raises:
        DataError: where the images do not allow to choose.
    """
    started = time.perf_counter()
    kinds = HEADS_FOR[targets.kind]
    depths = []
    for cut, pool in track(list(zip(codes.cuts, codes.pools, strict=True)), "probing every depth"):
        rows = codes.at(cut.name)
        judged = {
            kind: judge(rows, targets.values, targets.outputs, kind=kind, groups=groups, seed=seed)
            for kind in kinds
        }
        head = head_to_use(judged, groups)
        depths.append(DepthResult(cut, pool, rows.shape[1], judged, head))
    probed = time.perf_counter()
    best = best_of(tuple(depths))
    curve = learning_curve(
        codes.at(best.cut.name),
        targets,
        kind=best.head,
        path=sorted(STRENGTHS[best.head], reverse=True),
        groups=groups,
        seed=seed,
    )
    seconds = {
        "codes": round(collected, 3),
        "probes": round(probed - started, 3),
        "learning_curve": round(time.perf_counter() - probed, 3),
    }
    return Profile(loaded, targets, groups, codes, tuple(depths), curve, seed, seconds)


def images_per_class(targets: Targets) -> float:
    """Return how many images there are for each class; of labels and numbers, all images."""
    classes = len(targets.names) if targets.kind == "classes" else 1
    return len(targets.values) / classes


def head_to_use(judged: dict[str, Judged], groups: Array) -> str:
    """Return the kind of head to use: the first, unless another is told apart as better."""
    first, *others = judged
    chosen = judged[first]
    for kind in others:
        other = judged[kind]
        above = standard_errors_above(chosen.losses, other.losses, groups[other.rows])
        if above > ONE_STANDARD_ERROR:
            chosen = other
    return chosen.kind


def require_same_folds(profiles: list[Profile]) -> None:
    """Refuse to compare profiles of other images.

    Raises:
        UsageError: naming what differs.
    """
    first = profiles[0]
    for other in profiles[1:]:
        if not np.array_equal(first.best.best.rows, other.best.best.rows):
            raise UsageError(
                f"{other.loaded.backbone.name} was profiled on other images than"
                f" {first.loaded.backbone.name}; profile both on the same data"
            )
