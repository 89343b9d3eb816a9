"""The methods by name: the recipe of each, and the module that carries it out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from topwork.errors import UsageError, did_you_mean
from topwork.learn.samples import Samples
from topwork.pretraining import (
    autoencoder,
    contrastive,
    distill,
    gan,
    masked,
    rbm,
    rotation,
    supervised,
)
from topwork.pretraining.material import Material
from topwork.pretraining.recipe import Recipe
from topwork.pretraining.stages import Progress

RECIPES: dict[str, type[Recipe]] = {
    "rbm": rbm.RbmRecipe,
    "autoencoder": autoencoder.AutoencoderRecipe,
    "gan": gan.GanRecipe,
    "masked": masked.MaskedRecipe,
    "contrastive": contrastive.ContrastiveRecipe,
    "rotation": rotation.RotationRecipe,
    "supervised": supervised.SupervisedRecipe,
    "distill": distill.DistillRecipe,
}
PAPERS = {
    "rbm": rbm.PAPER,
    "autoencoder": autoencoder.PAPER,
    "gan": gan.PAPER,
    "masked": masked.PAPER,
    "contrastive": contrastive.PAPER,
    "rotation": rotation.PAPER,
    "supervised": supervised.PAPER,
    "distill": distill.PAPER,
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


def outputs_of(recipe: Recipe, names: Sequence[str], teacher: Samples | None) -> int | None:
    """Return how many classes the network's own classifier is to learn; None if it learns none.

    Args:
        recipe: of the method.
        names: of the images' classes.
        teacher: whose classes the method may learn.
    """
    match recipe:
        case supervised.SupervisedRecipe():
            return len(names) or None
        case distill.DistillRecipe() if teacher and recipe.logits:
            head = distill.classifier_of(teacher.loaded)
            return len(head[1]) if head else None
    return None


def run(material: Material, recipe: Any) -> Iterator[Progress | None]:
    """Pretrain by the method whose recipe this is."""
    match recipe:
        case rbm.RbmRecipe():
            return rbm.pretrain_rbm(material, recipe)
        case autoencoder.AutoencoderRecipe():
            return autoencoder.pretrain_autoencoder(material, recipe)
        case gan.GanRecipe():
            return gan.pretrain_gan(material, recipe)
        case masked.MaskedRecipe():
            return masked.pretrain_masked(material, recipe)
        case contrastive.ContrastiveRecipe():
            return contrastive.pretrain_contrastive(material, recipe)
        case rotation.RotationRecipe():
            return rotation.pretrain_rotation(material, recipe)
        case supervised.SupervisedRecipe():
            return supervised.pretrain_supervised(material, recipe)
        case distill.DistillRecipe():
            return distill.pretrain_distill(material, recipe)
    raise UsageError(f"{type(recipe).__name__} is no recipe of a method")
