"""What is asked of a pretraining."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from topwork.data.image_set import ImageSet
from topwork.data.unlabeled import are_numbers
from topwork.errors import BackboneError, PlanError, UsageError
from topwork.network.spec import CHANNELS
from topwork.network.zoo import Backbone, find_backbone
from topwork.plan import Plan
from topwork.pretraining.recipe import Recipe
from topwork.trunk.execution import Execution

SIZES = {"img_size", "image_size", "input_size"}
"""Arguments of builders for the size of images."""


@dataclass(frozen=True, eq=False)
class Request:
    """What is to be made, complete.

    Attributes:
        method: its name.
        recipe: how.
        plan: which backbone at which size, and how much of it is to start from weights.
        backbone: that.
        images: what to learn from.
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


def settle_network(backbone: Backbone, arguments: Mapping[str, Any]) -> tuple[Backbone, int | None]:
    """Return a backbone that is built with further arguments, and what it is to take for channels.

    Raises:
        PlanError: for arguments that another option stands for.
    """
    if sizes := sorted(SIZES & arguments.keys()):
        raise PlanError(f"recipe: arguments: {sizes[0]} is given by --size; leave it out")
    channels = arguments.get(CHANNELS)
    if channels is not None and type(channels) is not int:
        raise PlanError(f"recipe: arguments: {CHANNELS} is {channels!r}; give a whole number")
    others = {name: value for name, value in arguments.items() if name != CHANNELS}
    spec = replace(backbone.spec, arguments={**backbone.spec.arguments, **others})
    return replace(backbone, spec=spec), channels


def reused_of(backbone: Backbone) -> str | None:
    """Return up to where a network's own weights are to start from, "0" for random ones.

    Published weights are left alone. None stands for all layers.
    """
    if backbone.weights is None or backbone.weights.kind != "file":
        return "0"
    return backbone.reaches


def settle_teacher(
    method: str, teacher: str | Path | Backbone | None, weights: str | Path | None
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


def classes_of(images: ImageSet) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Return class names and the class of each image, -1 where it has none; None without classes.

    Where images have several labels, they have no class; nor have they one where labels are numbers
    and not all of them whole, as the names of classes would be.
    """
    if images.multilabel or images.number_names or len(images.classes) < 2:
        return (), None
    if are_numbers(images) and not all(float(name).is_integer() for name in images.classes):
        return (), None
    number_of = {name: number for number, name in enumerate(images.classes)}
    classes = [number_of[item.labels[0]] if item.labels else -1 for item in images.items]
    return images.classes, np.array(classes, np.int64)
