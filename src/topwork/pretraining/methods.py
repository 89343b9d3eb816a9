"""The methods by name: the recipe of each, and the module that carries it out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from topwork.errors import UsageError, did_you_mean
from topwork.pretraining import rbm
from topwork.pretraining.material import Material
from topwork.pretraining.recipe import Recipe
from topwork.pretraining.stages import Progress

RECIPES: dict[str, type[Recipe]] = {
    "rbm": rbm.RbmRecipe,
}
PAPERS = {
    "rbm": rbm.PAPER,
}


def recipe_of(method: str) -> Recipe:
    """Return a method's recipe as it is by default.

    Raises:
        UsageError: for an unknown method.
    """
    if method not in RECIPES:
        raise UsageError(
            f"--method {method!r} is unknown{did_you_mean(method, RECIPES)}; known are"
            f" {', '.join(RECIPES)}"
        )
    return RECIPES[method]()  # type: ignore[call-arg]


def run(material: Material, recipe: Any) -> Iterator[Progress | None]:
    """Pretrain by the method whose recipe this is."""
    match recipe:
        case rbm.RbmRecipe():
            return rbm.pretrain_rbm(material, recipe)
    raise UsageError(f"{type(recipe).__name__} is no recipe of a method")
