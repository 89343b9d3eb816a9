"""Recipes: how a method is to pretrain, as plain data, strict about unknown keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from topwork.errors import PlanError, did_you_mean
from topwork.phase import Phase


@dataclass(frozen=True)
class Recipe:
    """What all recipes have in common.

    Attributes:
        phase: how each stage is trained by gradient descent.
    """

    phase: Phase

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, what a phase leaves as it is by default left out."""
        whole = asdict(self)
        default = asdict(Phase())
        whole["phase"] = {k: v for k, v in whole["phase"].items() if v != default[k]}
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
            if key != "phase" and _kind(value) != _kind(known[key]):
                raise PlanError(
                    f"recipe: {key} is {value!r}; give something like {known[key]!r}, its default"
                )
        if "phase" in values:
            values["phase"] = _phase(self.phase, values["phase"])
        return type(self)(**{**known, **values})


def _kind(value: Any) -> type:
    """Return a value's type; a whole number counts as a number."""
    return float if type(value) is int else type(value)


def _phase(default: Phase, data: Any) -> Phase:
    if not isinstance(data, Mapping):
        raise PlanError(f"recipe: phase is {data!r}; give an object such as {{'epochs': 10}}")
    known = asdict(default)
    for key in data:
        if key not in known:
            raise PlanError(f"recipe: phase: unknown key {key!r}{did_you_mean(key, known)}")
    try:
        return Phase(**{**known, **data, "stop": None})
    except TypeError as error:
        raise PlanError(f"recipe: phase: a value has the wrong type ({error})") from error


def require_positive(recipe: Recipe, *names: str) -> None:
    """Refuse values of a recipe that are not above 0.

    Raises:
        PlanError: naming the first.
    """
    for name in names:
        if not getattr(recipe, name) > 0:
            raise PlanError(f"recipe: {name} is {getattr(recipe, name)}; give a number above 0")
