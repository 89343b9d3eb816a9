"""From what is asked of a pretraining to what its method is given: networks first, then images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from topwork.data.audit import Audit
from topwork.data.loading import Track
from topwork.errors import BackboneError, DataError
from topwork.learn.checkpoints import Checkpoints
from topwork.learn.fit import groups_of
from topwork.learn.samples import Samples
from topwork.network.loading import Loaded, load_backbone
from topwork.network.zoo import Backbone
from topwork.plan import Plan
from topwork.pretraining.material import Material
from topwork.pretraining.methods import outputs_of, require_suitable
from topwork.pretraining.request import Request, classes_of
from topwork.pretraining.stages import Stages
from topwork.trunk.extraction import LAYOUT

HELD_OUT = 0.05
"""Share of the images that are held out to judge epochs by."""
MOST_HELD_OUT = 2000
FEWEST = 4
"""Images that are needed: fewer have no deviation worth the name."""


@dataclass(frozen=True, eq=False)
class Networks:
    """What is trained, and what teaches it.

    Attributes:
        loaded: the network to be trained.
        teacher: the one to learn from, if the method wants one.
    """

    loaded: Loaded
    teacher: Loaded | None = None


def load_networks(request: Request) -> Networks:
    """Build the networks, before an image is read: what they cannot do is told at once.

    Raises:
        TopworkError: if one cannot be built or has no weights where it needs some; if the method
            cannot take it, or the images.
    """
    teacher = None
    if request.teacher:
        teacher = load_backbone(request.teacher, Plan(request.teacher.name))
        if teacher.plan.kept != teacher.chain.top.name:
            raise BackboneError(
                f"--teacher {request.teacher.name} has weights up to {teacher.plan.kept} only, and"
                " a student learns what its teacher makes of images at the top; name one that is"
                " whole"
            )
    names, _ = classes_of(request.images)
    outputs = outputs_of(request.recipe, names, teacher)
    backbone = with_outputs(request.backbone, outputs) if outputs else request.backbone
    loaded = load_backbone(backbone, request.plan, request.seed)
    require_suitable(request.recipe, loaded, teacher, request.images, names)
    loaded.chain.network.to(request.execution.device).to(memory_format=LAYOUT)
    return Networks(loaded, teacher)


def make_material(
    request: Request, networks: Networks, audited: Audit, checkpoints: Checkpoints, track: Track
) -> Material:
    """Divide the images into those to learn from and those held out.

    Raises:
        DataError: if too few are left that can be decoded.
    """
    images, loaded = request.images, networks.loaded
    names, classes = classes_of(images)
    samples = Samples(loaded, images, audited, request.execution, track)
    teacher = None
    if networks.teacher:
        teacher = Samples(networks.teacher, images, audited, request.execution, track)
    everything = np.array(audited.split.train)
    failed = samples.unreadable(loaded.chain.cuts[0], everything.tolist())
    lost = tuple((images.items[everything[n]].name, why) for n, why in sorted(failed.items()))
    usable = np.delete(everything, list(failed))
    if len(usable) < FEWEST:
        why = "".join(f"; {name}: {reason}" for name, reason in (*audited.unreadable, *lost)[:1])
        raise DataError(
            f"{images.location}: {len(usable)} images to learn from; give {FEWEST} or more{why}"
        )
    held_out = set_aside(
        groups_of(images, audited, usable.tolist()),
        min(MOST_HELD_OUT, max(1, round(HELD_OUT * len(usable)))),
        request.seed,
    )
    digests = [str(audited.digests[index]) for index in usable]
    identity = {
        "method": request.method,
        "recipe": request.recipe.to_dict(),
        "backbone": loaded.backbone.spec.to_dict(),
        "size of images": loaded.backbone.preprocessing.to_dict(),
        "images": digest_of(digests),  # in their order, which decides what is held out
        "labels": None if classes is None else digest_of([str(c) for c in classes[usable]]),
        "weights": loaded.weights["sha256"] if loaded.weights else None,
        "teacher": identity_of(networks.teacher) if networks.teacher else None,
        "seed": request.seed,
        "device": request.execution.device.type,
        "runtime": request.execution.runtime,
        "decoding": request.execution.decoding,
        "cache": request.execution.cache,
        "torch": version("torch"),
    }
    return Material(
        loaded,
        samples,
        tuple(usable[~held_out].tolist()),
        tuple(usable[held_out].tolist()),
        classes,
        names,
        request.seed,
        Stages(loaded.chain.network, request.seed, identity, checkpoints, track),
        teacher,
        lost,
    )


def set_aside(groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw what is held out: whole groups, as they come, that are not too large; bool [n].

    Args:
        groups: the group of each image, [n].
        count: images wanted; it may come out at fewer, but never at none: where every group is
            larger, they are divided.
        seed: of the draw.

    >>> set_aside(np.array([0, 0, 0, 1, 2]), 2, seed=0).tolist()
    [False, False, False, True, True]
    """
    drawn = np.random.default_rng(seed).permutation(len(groups))
    sizes = Counter(groups.tolist())
    taken: set[Any] = set()
    left = count
    for group in groups[drawn].tolist():
        if group not in taken and sizes[group] <= left:
            taken.add(group)
            left -= sizes[group]
    if taken:
        return np.isin(groups, list(taken))
    held_out = np.zeros(len(groups), bool)
    held_out[drawn[:count]] = True
    return held_out


def with_outputs(backbone: Backbone, outputs: int) -> Backbone:
    """Return a backbone whose own classifier has so many outputs."""
    arguments = {**backbone.spec.arguments, "num_classes": outputs}
    return replace(backbone, spec=replace(backbone.spec, arguments=arguments))


def identity_of(teacher: Loaded) -> dict[str, Any]:
    """Return which network a teacher is, as plain data."""
    return {
        **teacher.backbone.spec.to_dict(),
        "weights_sha256": teacher.weights["sha256"] if teacher.weights else None,
        "license": teacher.backbone.about.get("license"),
    }


def digest_of(texts: Sequence[str]) -> str:
    """Return the SHA-256 of texts in a row."""
    return hashlib.sha256(" ".join(texts).encode()).hexdigest()
