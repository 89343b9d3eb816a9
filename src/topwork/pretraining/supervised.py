"""Another labeled set as an auxiliary task: plain training of a whole network on its classes.

What Yosinski et al. 2014 ("How transferable are features in deep neural networks?") call the base
network of task A. All layers and the network's own linear classifier learn the classes by
cross-entropy, from a new random crop, half of them mirrored, of each image in each epoch. The
classifier stays in the network, so that it can be asked what it takes a target's images for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from topwork.data.image_set import ImageSet
from topwork.errors import UsageError
from topwork.learn.loop import Epoch
from topwork.network.cut import segment
from topwork.phase import Phase
from topwork.pretraining.material import Material
from topwork.pretraining.random_views import MILD, RandomViews
from topwork.pretraining.recipe import Recipe, require_share
from topwork.pretraining.stages import Progress, progress_of
from topwork.pretraining.watching import share_found

PAPER = "Yosinski et al. 2014 (their base network)"
STAGE = "classes"


@dataclass(frozen=True)
class SupervisedRecipe(Recipe):
    """How the classes are learned.

    Attributes:
        phase: of the whole network; label smoothing among it.
        least_area: share of the image that a crop shows at least; 1 takes none.
        flip: whether half of the crops are mirrored, left for right; of digits they must not be.
    """

    phase: Phase = field(
        default=Phase(
            epochs=15, batch=128, optimizer="adamw", rate=3e-3, weight_decay=0.05, warmup=1.0,
            clip=1.0, label_smoothing=0.1,
        )
    )  # fmt: skip
    least_area: float = MILD.least_area
    flip: bool = True

    def __post_init__(self) -> None:
        require_share(self, "least_area")


class Seen(nn.Module):
    """A network that sees random views of images in training, and the images as they are else.

    Args:
        network: maps [n, C, H, W] to scores.
        views: maps pixels to pixels.
    """

    def __init__(self, network: nn.Module, views: nn.Module) -> None:
        super().__init__()
        self.network, self.views = network, views

    def forward(self, pixels: Tensor) -> Tensor:
        """Return scores [n, classes] of normalized pixels [n, C, H, W]."""
        return self.network(self.views(pixels) if self.training else pixels)


def pretrain_supervised(material: Material, recipe: SupervisedRecipe) -> Iterator[Progress | None]:
    """Train the network and its classifier; yield after every step.

    The network's classifier has an output for each of the material's classes. Images whose class
    is not known are left out. Each epoch tells the accuracy on held-out images, its 95 % interval
    (Wilson's) and their number.
    """
    require_classes(material.samples.images, material.class_names)
    if material.stages.is_finished(STAGE):
        return
    chain, phase, device = material.chain, recipe.phase, material.device
    own, theirs = (known(material, some) for some in (material.indices, material.held_out))
    labeled = replace(material, indices=own, held_out=theirs)
    inputs, held_out = labeled.inputs(chain.cuts[0], phase.epochs)
    classes = torch.from_numpy(np.asarray(material.classes)).to(device)
    labels = classes[list(own)], classes[list(theirs)] if theirs else None
    strength = replace(MILD, least_area=recipe.least_area, flip=recipe.flip)
    views = RandomViews(material.loaded.backbone.preprocessing, strength)
    module = Seen(segment(chain, chain.cuts[0], None), views).to(device)
    for epoch in material.stages.train(STAGE, module, phase, inputs, held_out, labels):
        yield progress_of(epoch, STAGE, phase, scores(epoch, len(theirs))) if epoch else None


def require_classes(images: ImageSet, names: Sequence[str]) -> None:
    """Refuse images without classes.

    Args:
        images: to learn from.
        names: of their classes, none where there are no such.

    Raises:
        UsageError: saying what they have instead.
    """
    if names:
        return
    have = "fewer than two"
    if images.multilabel:
        have = "several labels an image"
    elif images.number_names or len(images.classes) > 1:
        have = "numbers"
    raise UsageError(
        f"--method supervised learns classes, and {images.location} has {have}; give a folder with"
        " one sub-folder per class, or choose another method"
    )


def known(material: Material, indices: Sequence[int]) -> tuple[int, ...]:
    """Return those of some images whose class is known."""
    classes = material.classes
    return tuple(i for i in indices if classes is not None and classes[i] >= 0)


def scores(epoch: Epoch, count: int) -> dict[str, float]:
    """Return the accuracies of an epoch, that on so many held-out images with its interval."""
    found = {"accuracy_in_training": epoch.accuracy}
    if epoch.validation_accuracy is not None:
        found |= share_found("accuracy", epoch.validation_accuracy, count)
    return found
