"""Trying a plan on some of the training images, judged by others of them."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
import torch

from topwork.advice.remembered import recall, remember
from topwork.data.audit import Audit
from topwork.data.image_set import ImageSet
from topwork.data.split import Split
from topwork.learn.fit import fit_plan
from topwork.learn.targets import Targets
from topwork.network.loading import load_backbone
from topwork.network.zoo import Backbone
from topwork.plan import Plan
from topwork.trunk.execution import Execution

Array = np.ndarray

log = logging.getLogger("topwork")

FEWEST_EPOCHS = 2

FORMAT = 1
"""Of trials; raise it when the same plan comes to train otherwise."""

PACKAGES = ("topwork", "torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn")


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be learned, from which images.

    Attributes:
        backbone: the network as it was found, before a plan.
        weights: the SHA-256 of its pretrained weights; None if there are none.
        images: where images come from.
        audit: their content hashes.
        indices: the training images that can be read.
        targets: of these.
        groups: [n] what must not be divided.
        execution: how trunks are run.
        seed: of everything that is drawn.
    """

    backbone: Backbone
    weights: str | None
    images: ImageSet
    audit: Audit
    indices: tuple[int, ...]
    targets: Targets
    groups: Array
    execution: Execution
    seed: int


@dataclass(frozen=True, eq=False)
class Division:
    """Which rows of a task are learned from, and which judge."""

    learned: Array
    judged: Array


def try_plan(task: Task, plan: Plan, division: Division, share: float = 1.0) -> tuple[Array, float]:
    """Fit a plan to some rows and score others; what was tried before is not tried again.

    All rows to learn from are trained on to the last epoch: a plan's rule to stop would hold some
    of them out, and here others judge.

    Args:
        task: what is to be learned.
        plan: how.
        division: the rows.
        share: of the epochs of each phase that trains kept layers.

    Returns:
        scores [judged, outputs] float32, and the seconds that it took when it was run.
    """
    shortened = in_short(plan, share)
    key = key_of_trial(task, shortened, division)
    keep = task.execution.cache != "off"
    remembered = recall(key) if keep else None
    if remembered is not None:
        return remembered
    start = time.perf_counter()
    learned, judged = (
        tuple(task.indices[row] for row in rows) for rows in (division.learned, division.judged)
    )
    audit = replace(task.audit, split=Split(learned, (), judged, "given"))
    with quietly():
        loaded = load_backbone(task.backbone, shortened, task.seed)
        fitted = fit_plan(loaded, task.images, audit, task.execution, task.seed)
        scores = fitted.scores(judged).cpu().numpy().astype(np.float32)
    seconds = time.perf_counter() - start
    if keep:
        remember(key, scores, seconds)
    return scores, seconds


def in_short(plan: Plan, share: float) -> Plan:
    """Return a plan with a share of its epochs, all of which are run.

    >>> from topwork.named_plans import named_plan
    >>> [phase.epochs for phase in in_short(named_plan("warmup", "any"), 0.25).phases]
    [0, 5]
    """
    phases = []
    for phase in plan.phases:
        part = share if phase.frozen is not None else 1.0
        epochs = max(FEWEST_EPOCHS, round(phase.epochs * part)) if phase.epochs else 0
        warmup = min(phase.warmup, epochs / 4)
        phases.append(replace(phase, epochs=epochs, warmup=warmup, stop=None, gradual=False))
    return replace(plan, phases=tuple(phases))


@contextmanager
def quietly() -> Iterator[None]:
    """Keep what fits say of themselves to warnings: there are many, and each is short."""
    level = log.level
    log.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        log.setLevel(level)


def key_of_trial(task: Task, plan: Plan, division: Division) -> str:
    """Return what identifies a trial: two with the same key give the same scores."""
    digests = [str(task.audit.digests[index]) for index in task.indices]
    facts = {
        "plan": plan.to_dict(),
        "backbone": task.backbone.spec.to_dict(),
        "preprocessing": task.backbone.preprocessing.to_dict(),
        "weights": task.weights,
        "images": digests,
        "targets": hashlib.sha256(np.ascontiguousarray(task.targets.values).tobytes()).hexdigest(),
        "groups": [str(group) for group in task.groups],
        "learned": division.learned.tolist(),
        "judged": division.judged.tolist(),
        "seed": task.seed,
        "device": task.execution.device.type,
        "runtime": task.execution.runtime,
        "decoding": task.execution.decoding,
        "cache": task.execution.cache,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in PACKAGES},
        "format": FORMAT,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
