"""The methods by name: the recipe of each, and the function that carries it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from topwork.data.image_set import ImageSet
from topwork.errors import UsageError, did_you_mean
from topwork.network.chain import Chain, CutPoint
from topwork.network.loading import Loaded
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

PROBE = "probe is the accuracy of a linear head on the codes of held-out images"
RANK = "effective rank is along how many directions codes vary"


@dataclass(frozen=True)
class Method:
    """A way to pretrain.

    Attributes:
        recipe: its kind of recipe; no other method has it.
        pretrain: carries it out, yielding after every step.
        paper: where it was published.
        measures: what the losses and the other numbers of its epochs are, in words.
    """

    recipe: type[Recipe]
    pretrain: Callable[[Material, Any], Iterator[Progress | None]]
    paper: str
    measures: str


METHODS = {
    "rbm": Method(
        rbm.RbmRecipe,
        rbm.pretrain_rbm,
        rbm.PAPER,
        "held out is the error of rebuilding what a layer is given of held-out images, summed over"
        " its units, which is not what is minimized but shows how it goes; the free energy gap is"
        " by how much their free energy exceeds that of images learned from, and rises when a"
        " machine overfits; stuck is the share of units that are the same for all images",
    ),
    "autoencoder": Method(
        autoencoder.AutoencoderRecipe,
        autoencoder.pretrain_autoencoder,
        autoencoder.PAPER,
        "loss is the error of rebuilding what a layer was given, from the codes of a noisy copy:"
        " of values from 0 to 1 the cross-entropy, summed over units, of others the squared error"
        f" as a share of their variance; {PROBE}",
    ),
    "gan": Method(
        gan.GanRecipe,
        gan.pretrain_gan,
        gan.PAPER,
        "loss is the sum of both players', which need not fall; told apart is how often the"
        " discriminator is right (0.5 is chance); diversity is that of what is made, 1 if as large"
        f" as that of the images; {PROBE}",
    ),
    "masked": Method(
        masked.MaskedRecipe,
        masked.pretrain_masked,
        masked.PAPER,
        "loss is the error of predicting hidden pixels: squared, of patches less their mean and"
        " over their deviation (transformers), or absolute (networks that give maps);"
        f" {PROBE}",
    ),
    "contrastive": Method(
        contrastive.ContrastiveRecipe,
        contrastive.pretrain_contrastive,
        contrastive.PAPER,
        "loss is NT-Xent, which depends on how many images are compared and is not told of those"
        " held out, or VICReg's; found again is how many views are nearest to the other view of"
        f" their image; {RANK}; deviation is that of the projections (near 0: collapsed); {PROBE}",
    ),
    "rotation": Method(
        rotation.RotationRecipe,
        rotation.pretrain_rotation,
        rotation.PAPER,
        "loss is the cross-entropy of telling four turns (1.39 is chance) and right the share told"
        f" rightly (0.25 is chance); {RANK}; {PROBE}",
    ),
    "supervised": Method(
        supervised.SupervisedRecipe,
        supervised.pretrain_supervised,
        supervised.PAPER,
        "loss is the cross-entropy of the classes, in training of random views and with the"
        " recipe's label smoothing; accuracy is that on held-out images",
    ),
    "distill": Method(
        distill.DistillRecipe,
        distill.pretrain_distill,
        distill.PAPER,
        "loss is the squared error of the teacher's codes as a share of their variance and, where"
        " its classifier is known, the divergence of the student's logits, in training the error of"
        " hints as well, by their weight; agreement is how often both name the same class of a"
        " held-out image",
    ),
}
RECIPES = {name: method.recipe for name, method in METHODS.items()}


def recipe_of(method: str) -> Recipe:
    """Return a method's recipe as it is by default.

    Raises:
        UsageError: for an unknown method.
    """
    if method not in METHODS:
        raise UsageError(
            f"--method {method!r} is unknown{did_you_mean(method, METHODS)}; known are"
            f" {', '.join(METHODS)}"
        )
    return METHODS[method].recipe()  # type: ignore[call-arg]


def outputs_of(recipe: Recipe, names: Sequence[str], teacher: Loaded | None) -> int | None:
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
            head = distill.classifier_of(teacher)
            return len(head[1]) if head else None
    return None


def require_suitable(
    recipe: Recipe,
    loaded: Loaded,
    teacher: Loaded | None,
    images: ImageSet,
    names: Sequence[str],
) -> None:
    """Refuse what a method cannot do with networks and images, before the latter are read.

    Args:
        recipe: of the method.
        loaded: the network to be trained.
        teacher: the one to learn from, if any.
        images: to learn from.
        names: of their classes.

    Raises:
        PlanError, UsageError: saying what it takes.
    """
    match recipe:
        case rbm.RbmRecipe():
            rbm.machines_layers(loaded.chain)
        case autoencoder.AutoencoderRecipe():
            autoencoder.require_decoders(loaded.chain, recipe)
        case masked.MaskedRecipe():
            masked.make_module(loaded.chain, recipe, 0)
        case rotation.RotationRecipe():
            rotation.require_squares(loaded)
        case supervised.SupervisedRecipe():
            supervised.require_classes(images, names)
        case distill.DistillRecipe() if teacher:
            distill.require_same_shape(loaded, teacher)


def learned_up_to(recipe: Recipe, chain: Chain) -> CutPoint:
    """Return the cut point up to which a method trains all layers that have weights."""
    cut = masked.predicts_from(chain) if isinstance(recipe, masked.MaskedRecipe) else chain.top
    depths = chain.depth_of_state().values()
    return cut if any(cut.depth < depth <= chain.top.depth for depth in depths) else chain.top


def run(material: Material, recipe: Recipe) -> Iterator[Progress | None]:
    """Pretrain by the method whose recipe this is.

    Raises:
        UsageError: if it is none's.
    """
    for method in METHODS.values():
        if isinstance(recipe, method.recipe):
            return method.pretrain(material, recipe)
    raise UsageError(f"{type(recipe).__name__} is no recipe of a method")
