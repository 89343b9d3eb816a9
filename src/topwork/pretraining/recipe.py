"""Recipes: how a method is to pretrain, as plain data, strict about unknown keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from topwork.errors import PlanError, did_you_mean
from topwork.phase import Phase

PHASE_KEYS = (
    *("epochs", "batch", "at_once", "optimizer", "rate", "momentum", "weight_decay", "warmup"),
    *("schedule", "clip", "label_smoothing", "precision"),
)
"""What of a phase means something where no layers are reused and nothing is chosen by a score."""
MAY_BE_NULL = {"at_once": 32, "clip": 1.0}
"""Which of them may be null, and what else they are like."""


@dataclass(frozen=True)
class Recipe:
    """What all recipes have in common.

    Attributes:
        phase: how each stage is trained by gradient descent; of it `PHASE_KEYS` count.
    """

    phase: Phase

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, of the phase what a pretraining goes by."""
        whole = asdict(self)
        whole["phase"] = {k: v for k, v in whole["phase"].items() if k in PHASE_KEYS}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in whole.items()}

    def changed(self, data: Mapping[str, Any]) -> Self:
        """Return the recipe with some of its values replaced; of ``phase`` those that are named.

        Raises:
            PlanError: for a key that the recipe does not have, or a value that makes no sense.
        """
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        for key in data:
            if key not in known:
                raise PlanError(
                    f"recipe: unknown key {key!r}{did_you_mean(key, known)}; known are"
                    f" {', '.join(known)}"
                )
        values = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        for key, value in values.items():
            if key != "phase":
                require_kind(f"recipe: {key}", value, known[key])
        if "phase" in values:
            values["phase"] = _phase(self.phase, values["phase"])
        return type(self)(**{**known, **values})


def require_kind(what: str, value: Any, default: Any) -> None:
    """Refuse a value of another kind than the default; a whole number does where any number does.

    Raises:
        PlanError: also for a number that is not finite.
    """
    fits = type(value) is type(default) or (type(value) is int and type(default) is float)
    if not fits or (isinstance(value, float) and not math.isfinite(value)):
        raise PlanError(f"{what} is {value!r}; give something like {default!r}")


def _phase(default: Phase, data: Any) -> Phase:
    if not isinstance(data, Mapping):
        raise PlanError(f"recipe: phase is {data!r}; give an object such as {{'epochs': 10}}")
    known = {key: value for key, value in asdict(default).items() if key in PHASE_KEYS}
    for key, value in data.items():
        if key not in known:
            raise PlanError(
                f"recipe: phase: unknown key {key!r}{did_you_mean(key, known)}; known here are"
                f" {', '.join(known)}"
            )
        if value is not None or key not in MAY_BE_NULL:
            require_kind(f"recipe: phase: {key}", value, MAY_BE_NULL.get(key, known[key]))
    if data.get("epochs", default.epochs) < 1:
        raise PlanError(f"recipe: phase: epochs is {data['epochs']}; give 1 or more")
    return replace(default, **data)


def require_positive(recipe: Recipe, *names: str) -> None:
    """Refuse values of a recipe that are not above 0.

    Raises:
        PlanError: naming the first.
    """
    for name in names:
        if not getattr(recipe, name) > 0:
            raise PlanError(f"recipe: {name} is {getattr(recipe, name)}; give a number above 0")


def require_share(recipe: Recipe, *names: str) -> None:
    """Refuse values of a recipe that are not shares of something, above 0 and up to 1.

    Raises:
        PlanError: naming the first.
    """
    for name in names:
        if not 0 < getattr(recipe, name) <= 1:
            raise PlanError(f"recipe: {name} is {getattr(recipe, name)}; give a share up to 1")
