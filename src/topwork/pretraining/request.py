"""What is asked of a pretraining, and what a method is then given."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from topwork.data.audit import Audit
from topwork.data.image_set import ImageSet
from topwork.data.loading import Track
from topwork.errors import BackboneError, DataError, PlanError, UsageError
from topwork.learn.checkpoints import Checkpoints
from topwork.learn.fit import groups_of
from topwork.learn.samples import Samples
from topwork.network.loading import Loaded, load_backbone
from topwork.network.zoo import Backbone, find_backbone
from topwork.plan import Plan
from topwork.pretraining.material import Material
from topwork.pretraining.methods import outputs_of
from topwork.pretraining.recipe import Recipe
from topwork.pretraining.stages import Stages
from topwork.trunk.execution import Execution
from topwork.trunk.extraction import LAYOUT

HELD_OUT = 0.05
"""Share of the images that are held out to judge epochs by."""
MOST_HELD_OUT = 2000
FEWEST = 4
"""Images that are needed: fewer have no deviation worth the name."""


@dataclass(frozen=True, eq=False)
class Request:
    """What is to be made, complete.

    Attributes:
        method: its name.
        recipe: how.
        plan: which backbone at which size, and how much of it is to start from weights.
        backbone: that.
        images: what to learn from.
        audited: what an audit found of them.
        execution: how frozen layers are run.
        seed: of everything that is drawn.
        teacher: a network with pretrained weights to learn from, if the method wants one.
        half: whether the weights are to be written in half precision.
        arguments: of the network's builder, as they were asked for.
    """

    method: str
    recipe: Recipe
    plan: Plan
    backbone: Backbone
    images: ImageSet
    audited: Audit
    execution: Execution
    seed: int
    teacher: Backbone | None = None
    half: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def recipe_in_full(self) -> dict[str, Any]:
        """Return plain data that can be given as a recipe again, for the same."""
        arguments = {"arguments": dict(self.arguments)} if self.arguments else {}
        return {**self.recipe.to_dict(), **arguments}


def settle_recipe(
    method: str,
    default: Recipe,
    changes: str | Path | Mapping[str, Any] | None,
    epochs: int | None,
    rate: float | None,
) -> tuple[Recipe, dict[str, Any]]:
    """Return a method's recipe with what is asked for, and arguments for the network's builder.

    Raises:
        PlanError: if something in it makes no sense.
        UsageError: if the file cannot be read.
    """
    asked: dict[str, Any] = {}
    if isinstance(changes, Mapping):
        asked = dict(changes)
    elif changes is not None:
        try:
            asked = json.loads(Path(changes).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(
                f"--recipe {changes} cannot be read ({error.strerror}); give a JSON file"
            ) from error
        except ValueError as error:
            raise PlanError(
                f"--recipe {changes} is not readable JSON ({error}); write an object such as"
                ' {"phase": {"epochs": 10}}'
            ) from error
        if not isinstance(asked, dict):
            raise PlanError(f"--recipe {changes} holds no object; write it like {{}}")
    named_method = asked.pop("method", method)
    if named_method != method:
        raise PlanError(f"recipe: it is for method {named_method!r}; leave that out, or --method")
    arguments = asked.pop("arguments", {})
    if not isinstance(arguments, dict):
        raise PlanError(
            f'recipe: arguments is {arguments!r}; give an object such as {{"depth": 4}}'
        )
    named = {"epochs": epochs, "rate": rate}
    phase = asked.get("phase", {})
    if isinstance(phase, Mapping):
        asked["phase"] = {**phase, **{k: v for k, v in named.items() if v is not None}}
    return default.changed(asked), arguments


def settle_teacher(
    method: str, teacher: str | Backbone | None, weights: str | Path | None
) -> Backbone | None:
    """Return the network to distill, if that is the method.

    Raises:
        UsageError: if there is none to distill, or one is named for another method.
        BackboneError: if it cannot be found, or nothing is known of its weights.
    """
    if method != "distill":
        if teacher or weights:
            raise UsageError(
                f"--teacher belongs to --method distill, not to {method}; leave it out"
            )
        return None
    if teacher is None:
        raise UsageError("--method distill learns from another network; name it with --teacher")
    found = find_backbone(teacher, weights=weights)
    if found.weights is None:
        raise BackboneError(
            f"--teacher {found.name}: no pretrained weights are known for it; give a file with"
            " --teacher-weights"
        )
    return found


def make_material(request: Request, checkpoints: Checkpoints, track: Track) -> Material:
    """Build the network and divide the images into those to learn from and those held out."""
    names, classes = classes_of(request.images)
    teacher = None
    if request.teacher:
        taught_by = load_backbone(request.teacher, Plan(request.teacher.name))
        teacher = Samples(taught_by, request.images, request.audited, request.execution, track)
    outputs = outputs_of(request.recipe, names, teacher)
    backbone = with_outputs(request.backbone, outputs) if outputs else request.backbone
    loaded = load_backbone(backbone, request.plan, request.seed)
    loaded.chain.network.to(request.execution.device).to(memory_format=LAYOUT)
    samples = Samples(loaded, request.images, request.audited, request.execution, track)
    everything = np.array(request.audited.split.train)
    failed = samples.unreadable(loaded.chain.cuts[0], everything.tolist())
    usable = np.delete(everything, list(failed))
    if len(usable) < FEWEST:
        raise DataError(
            f"{request.images.location}: {len(usable)} images to learn from; give {FEWEST} or more"
        )
    held_out = set_aside(
        groups_of(request.images, request.audited, usable.tolist()),
        min(MOST_HELD_OUT, max(1, round(HELD_OUT * len(usable)))),
        request.seed,
    )
    digests = [str(request.audited.digests[index]) for index in usable]
    identity = {
        "method": request.method,
        "recipe": request.recipe.to_dict(),
        "backbone": loaded.backbone.spec.to_dict(),
        "size of images": loaded.backbone.preprocessing.to_dict(),
        "images": digest_of(digests),  # in their order, which decides what is held out
        "labels": None if classes is None else digest_of([str(c) for c in classes[usable]]),
        "weights": loaded.weights["sha256"] if loaded.weights else None,
        "teacher": identity_of(teacher.loaded) if teacher else None,
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


def classes_of(images: ImageSet) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Return class names and the class of each image, -1 where it has none; None without classes.

    Where images have several labels, they have no class.
    """
    if images.multilabel or images.number_names or len(images.classes) < 2:
        return (), None
    number_of = {name: number for number, name in enumerate(images.classes)}
    classes = [number_of[item.labels[0]] if item.labels else -1 for item in images.items]
    return images.classes, np.array(classes, np.int64)


def digest_of(texts: Sequence[str]) -> str:
    """Return the SHA-256 of texts in a row."""
    return hashlib.sha256(" ".join(texts).encode()).hexdigest()
