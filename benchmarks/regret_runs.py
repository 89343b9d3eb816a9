"""What `regret.py` runs, and where it keeps what came of it: each fit and each advice once.

A row is one line of a JSON-lines file, so that a run which was stopped goes on where it was.
Seconds are of the processor, not of the clock, so that a busy machine changes nothing.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import regret_sets
from kept_rows import Row, append, rows_of
from topwork.advice import candidates as known
from topwork.advice.candidates import Candidate, candidates
from topwork.advice.depth_codes import collect
from topwork.advice.profile import Profile, make_profile
from topwork.advising import advise
from topwork.data.audit import Audit, audit
from topwork.data.image_set import ImageSet
from topwork.learn.fit import fit_plan, groups_of
from topwork.learn.targets import targets_of
from topwork.network.loading import load_backbone
from topwork.network.zoo import Backbone, find_backbone
from topwork.plan import Plan
from topwork.trunk.execution import Execution

SIZE = (128, 128)  # pixels
COUNTS = (10, 40)  # training images per class
WANTED = (
    *(known.TOP, known.BEST, known.SEVERAL),
    *(known.DROP, known.TWO_THIRDS, known.ALL),
)


@dataclass(frozen=True)
class Case:
    """One target with so many images, seen by one network."""

    target: str
    network: str
    per_class: int


@dataclass(frozen=True)
class Place:
    """Where data and weights are read, and rows and caches are kept; and the seed of it all."""

    data: Path
    weights: Path
    out: Path
    seed: int

    def network(self, name: str) -> Backbone:
        """Return a network with its weights."""
        if name == "squeezenet1_1":
            file = self.weights / "squeezenet1_1.safetensors"
            return find_backbone("torchvision:squeezenet1_1", weights=file)
        return find_backbone(str(self.weights / name))


NETWORKS = ("mobilenetv2_100", "squeezenet1_1")
CASES = tuple(
    Case(target, network, count)
    for count, network, target in product(COUNTS, NETWORKS, regret_sets.TARGETS)
)
"""So ordered that each target is soon seen once."""


@dataclass(frozen=True, eq=False)
class Setting:
    """A case, opened."""

    backbone: Backbone
    plan: Plan
    images: ImageSet
    audited: Audit
    execution: Execution
    seed: int


def processor_seconds() -> float:
    """Return how long this process and its children have kept processors busy."""
    return sum(os.times()[:4])


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a function returns, and the processor's seconds that it took."""
    before = processor_seconds()
    found = function()
    return found, round(processor_seconds() - before, 2)


def run_fits(place: Place, case: Case) -> None:
    """Fit each candidate of a case once and score the test images; what is there is left as is."""
    file, cache = place.out / "fits.jsonl", place.out / "cache-fits" / name_of(case)
    there = [row for row in rows_of(file) if row["case"] == asdict(case)]
    use_cache(cache)
    setting = opened(place, case)
    for candidate in candidates(profiled(setting), setting.plan, only=WANTED):
        plan = candidate.plan.to_dict()
        if not any(row["name"] == candidate.name and row["plan"] == plan for row in there):
            row = fitted(setting, candidate)
            append(file, {"case": asdict(case), **row})
            print(f"  {name_of(case)}: {candidate.name}: {row['seconds']:.1f} s", flush=True)
    shutil.rmtree(cache, ignore_errors=True)


def opened(place: Place, case: Case) -> Setting:
    """Open a case: its network and images, and their audit."""
    backbone = place.network(case.network)
    images = regret_sets.images_for(case.target, place.data, case.per_class, place.seed)
    execution = Execution(torch.device("cpu"))
    plan = Plan(backbone.name, input_size=SIZE)
    return Setting(backbone, plan, images, audit(images), execution, place.seed)


def profiled(setting: Setting) -> Profile:
    """Return the profile of a case's training images."""
    loaded = load_backbone(setting.backbone, setting.plan, setting.seed)
    images, audited = setting.images, setting.audited
    codes = collect(loaded, images, audited, audited.split.train, setting.execution)
    targets = targets_of(images, codes.indices, "softmax")
    groups = groups_of(images, audited, codes.indices)
    return make_profile(loaded, targets, groups, codes, seed=setting.seed)


def fitted(setting: Setting, candidate: Candidate) -> Row:
    """Fit a candidate as it stands to all training images, and score the test images."""
    images, audited = setting.images, setting.audited

    def fit() -> Any:
        loaded = load_backbone(setting.backbone, candidate.plan, setting.seed)
        return fit_plan(loaded, images, audited, setting.execution, setting.seed)

    found, seconds = timed(fit)
    tested = audited.split.test
    scores, scoring = timed(lambda: found.scores(tested).cpu().numpy())
    names = tuple(images.classes)
    wanted = targets_of(images, tested, candidate.plan.head, names=names).values
    phase = found.records[-1]
    return {
        "name": candidate.name,
        "corner": candidate.corner,
        "cost": candidate.cost,
        "plan": candidate.plan.to_dict(),
        "images": len(audited.split.train),
        "seconds": seconds,
        "scoring": scoring,
        "right": "".join(str(int(right)) for right in scores.argmax(axis=1) == wanted),
        "epochs": len(phase["epochs"]),
        "improved": phase.get("improved"),
    }


def run_advice(place: Place, case: Case) -> None:
    """Ask for advice on a case, with an empty cache; what is there is left as it is.

    Its clock is the processor's too: on a busy machine less could be tried in the same time.
    """
    file = place.out / "advice.jsonl"
    if any(row["case"] == asdict(case) for row in rows_of(file)):
        return
    cache = place.out / "cache-advice" / name_of(case)
    shutil.rmtree(cache, ignore_errors=True)
    use_cache(cache)
    backbone = place.network(case.network)
    images = regret_sets.images_for(case.target, place.data, case.per_class, place.seed)
    with patch("time.perf_counter", time.process_time):
        advice, seconds = timed(
            lambda: advise(images, backbone=backbone, size=SIZE, candidates=WANTED, seed=place.seed)
        )
    append(file, {"case": asdict(case), "seconds": seconds, "advice": advice})
    print(f"  {name_of(case)}: {advice['recommended_name']}: {seconds:.1f} s", flush=True)
    shutil.rmtree(cache, ignore_errors=True)


def use_cache(folder: Path) -> None:
    """Keep outputs of frozen layers in a folder from now on."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TOPWORK_CACHE"] = str(folder)


def name_of(case: Case) -> str:
    """Return a name for a case, also fit for a file."""
    return f"{case.target}-{case.per_class}-{case.network}"


def right_of(row: Row) -> np.ndarray:
    """Return which test images a fit is right about, as 0 and 1."""
    return np.array([int(right) for right in row["right"]])
