"""The verbs that measure before anything is fitted: `profile` and `advise`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from topwork.advice.advice import (
    Advice,
    advise_on,
    distances_by_card,
    profile_record,
    size_of_profile,
)
from topwork.advice.depth_codes import collect
from topwork.advice.profile import Profile, make_profile
from topwork.advice.similarity import similarity_of
from topwork.advice.trials import Task
from topwork.data.audit import Audit, audit
from topwork.data.image_set import ImageSet
from topwork.data.items import open_images
from topwork.data.loading import Track, untracked
from topwork.errors import UsageError
from topwork.learn.fit import groups_of
from topwork.learn.targets import targets_of
from topwork.network.device import choose_device
from topwork.network.loading import load_backbone
from topwork.network.shipped import name_or_shipped, say_shipped
from topwork.network.zoo import Backbone, find_backbone
from topwork.plan import Plan
from topwork.trunk.execution import Execution

HEADS = ("softmax", "sigmoid", "regression")
"""What can be measured: classes, labels, numbers."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What one pass over the training images gave.

    Attributes:
        task: what is to be learned.
        profile: accuracy by depth.
        base: the plan that says backbone, kept depth, image size and channels.
    """

    task: Task
    profile: Profile
    base: Plan


def profile(
    data: str | Path | ImageSet,
    *,
    backbone: str | Path | Backbone | Sequence[str | Path | Backbone] | None = None,
    weights: str | Path | None = None,
    kept: str | None = None,
    head: str | None = None,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    device: str = "auto",
    runtime: str = "auto",
    decoding: str = "fast",
    cache: str = "auto",
    verify: str = "once",
    strict: bool = False,
    track: Track = untracked,
) -> dict[str, Any]:
    """Measure how well each depth of a pretrained network tells the classes apart, in one pass.

    Only training images are looked at; accuracies are those of linear probes on images that they
    did not see, by cross-validation.

    Args:
        data: as for `topwork.api.fit`.
        backbone: a name, see `topwork.network.zoo.find_backbone`, or what that returns; of several
            each is profiled on the same folds, and they are ranked; of none the small one that
            comes with topwork.
        weights: a file with the weights of a single backbone.
        kept: the uppermost depth to look at; default L, or as far up as there are weights.
        head: "softmax" for classes, the default, "sigmoid" for labels, "regression" for numbers.
        size: height and width of the images that the network sees, in pixels.
        seed: of the folds.
        device: as for `topwork.api.fit`, like all that follows.
        runtime: likewise.
        decoding: likewise.
        cache: likewise.
        verify: likewise.
        strict: likewise.
        track: shows progress.

    Returns:
        plain data: the profile with ``depths``, ``best``, ``learning_curve``, ``similarity`` and
        ``size``; of several backbones ``profiles``, ``ranking`` and ``recommended``.

    Raises:
        TopworkError: one of its kinds, for anything the user can mend.
    """
    started = time.perf_counter()
    names = backbones_of(backbone, weights)
    images, audited = opened(data, head, strict, track)
    if backbone is None:
        say_shipped()
    execution = Execution(choose_device(device), runtime, decoding, cache, verify)
    found = [
        measure(images, audited, one, base_plan(one, kept, head, size), execution, seed, track)
        for one in names
    ]
    if len(found) == 1:
        (only,) = found
        record = record_of(only.profile)
        return {**record, "seconds": round(time.perf_counter() - started, 3)}
    return {**ranked(found), "seconds": round(time.perf_counter() - started, 3)}


def advise(
    data: str | Path | ImageSet,
    *,
    backbone: str | Path | Backbone | Sequence[str | Path | Backbone] | None = None,
    weights: str | Path | None = None,
    kept: str | None = None,
    head: str | None = None,
    size: tuple[int, int] | None = None,
    candidates: Sequence[str] = (),
    time_budget: float | None = None,
    seed: int = 0,
    device: str = "auto",
    runtime: str = "auto",
    decoding: str = "fast",
    cache: str = "auto",
    verify: str = "once",
    strict: bool = False,
    track: Track = untracked,
) -> dict[str, Any]:
    """Measure, compare candidate plans within a time budget, and recommend one with its evidence.

    Args:
        data: as for `topwork.api.fit`.
        backbone: as for `profile`; of several the recommended one is gone on with.
        weights: as for `profile`, like all that is not named here.
        kept: likewise.
        head: likewise.
        size: likewise.
        candidates: names of plans to compare, see `topwork.advice.candidates`; all by default.
        time_budget: seconds after which no trial is begun, measuring included; by default a
            quarter of what fitting all candidates once is expected to take, between 5 s and two
            minutes, from when all is measured.
        seed: of everything that is drawn.
        device: likewise.
        runtime: likewise.
        decoding: likewise.
        cache: likewise.
        verify: likewise.
        strict: likewise.
        track: shows progress.

    Returns:
        plain data: ``recommended`` (a plan), ``candidates``, ``textbook``, ``profile``; of several
        backbones ``ranking`` too.

    Raises:
        TopworkError: one of its kinds, for anything the user can mend.
    """
    started = time.perf_counter()
    names = backbones_of(backbone, weights)
    images, audited = opened(data, head, strict, track)
    if backbone is None:
        say_shipped()
    execution = Execution(choose_device(device), runtime, decoding, cache, verify)
    found = [
        measure(images, audited, one, base_plan(one, kept, head, size), execution, seed, track)
        for one in names
    ]
    ranking, chosen = {}, found[0]
    if len(found) > 1:
        ranking = ranked(found)
        chosen = next(one for one in found if one.task.backbone.name == ranking["recommended"])
    advice = advise_on(
        chosen.task,
        chosen.profile,
        chosen.base,
        only=candidates,
        time_budget=time_budget,
        started=started,
        track=track,
    )
    result = advice.record()
    return {**result, "ranking": ranking["ranking"]} if ranking else result


def advice_for_fit(
    images: ImageSet,
    audited: Audit,
    backbone: Backbone,
    base: Plan,
    execution: Execution,
    *,
    time_budget: float | None,
    seed: int,
    track: Track,
) -> Advice:
    """Return the advice on images that are opened and audited already."""
    started = time.perf_counter()
    found = measure(images, audited, backbone, base, execution, seed, track)
    return advise_on(
        found.task, found.profile, base, time_budget=time_budget, started=started, track=track
    )


def backbones_of(
    backbone: str | Path | Backbone | Sequence[str | Path | Backbone] | None,
    weights: str | Path | None,
) -> list[Backbone]:
    """Return the backbones that are meant; if none is named, the one that comes with topwork.

    Raises:
        UsageError: if the sequence is empty, one is named twice, or a file of weights is given for
            several.
    """
    if backbone is None:
        backbone = name_or_shipped(None, weights)
    named = [backbone] if isinstance(backbone, str | Path | Backbone) else list(backbone)
    if not named:
        raise UsageError("no backbone is named; name one, or leave backbone out")
    if weights is not None and len(named) > 1:
        raise UsageError("--weights is for a single backbone; give folders with weights instead")
    found = [find_backbone(one, weights=weights) for one in named]
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"backbone {name} is named twice; leave one out")
    return found


def opened(
    data: str | Path | ImageSet, head: str | None, strict: bool, track: Track
) -> tuple[ImageSet, Audit]:
    """Open and audit images.

    Raises:
        UsageError: for a head that is not one of `HEADS`.
    """
    if head is not None and head not in HEADS:
        raise UsageError(
            f"--head {head!r}: what can be measured are classes (softmax), labels (sigmoid) and"
            " numbers (regression); choose one"
        )
    numbers = head == "regression"
    images = data if isinstance(data, ImageSet) else open_images(data, numbers=numbers)
    return images, audit(images, strict=strict, numbers=numbers, track=track)


def base_plan(
    backbone: Backbone, kept: str | None, head: str | None, size: tuple[int, int] | None
) -> Plan:
    """Return the plan that candidates are made from."""
    return Plan(backbone.name, kept=kept, head=head or HEADS[0], input_size=size)


def measure(
    images: ImageSet,
    audited: Audit,
    backbone: Backbone,
    base: Plan,
    execution: Execution,
    seed: int,
    track: Track,
) -> Measured:
    """Run the trunk once over the training images and probe every depth."""
    start = time.perf_counter()
    loaded = load_backbone(backbone, base, seed)
    loaded.chain.network.to(execution.device)
    indices = (*audited.split.train, *audited.split.val)
    codes = collect(loaded, images, audited, indices, execution, track)
    targets = targets_of(images, codes.indices, base.head)
    groups = groups_of(images, audited, codes.indices)
    collected = time.perf_counter() - start
    found = make_profile(
        loaded, targets, groups, codes, seed=seed, collected=collected, track=track
    )
    weights = loaded.weights["sha256"] if loaded.weights else None
    task = Task(backbone, weights, images, audited, codes.indices, targets, groups, execution, seed)
    return Measured(task, found, replace(base, backbone=backbone.name))


def record_of(found: Profile) -> dict[str, Any]:
    """Return a profile and what is read from it, as plain data.

    Distances at batch norms are left to `advise`: they take one more pass over some images.
    """
    similarity = similarity_of(found, distances_by_card(found))
    return profile_record(found, similarity, size_of_profile(found))


def ranked(found: Sequence[Measured]) -> dict[str, Any]:
    """Return the profiles of several backbones and their ranking, as plain data."""
    from topwork.advice.ranking import Entry, rank_backbones, scores_of

    entries = [
        Entry(one.profile, scores_of(one.profile), 1000 * one.profile.codes.seconds_an_image)
        for one in found
    ]
    ranking = rank_backbones(entries)
    return {
        "profiles": [record_of(one.profile) for one in found],
        "ranking": [place.record() for place in ranking],
        "recommended": next(place.entry.name for place in ranking if place.recommended),
    }
