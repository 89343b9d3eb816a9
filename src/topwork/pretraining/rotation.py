"""Rotation: tell by how many quarter turns an image was turned.

Gidaris, Singh and Komodakis 2018 ("Unsupervised representation learning by predicting image
rotations", RotNet). Each image of a batch goes through the network four times, turned by 0, 90, 180
and 270 degrees; a linear layer on the codes at L tells which, and is thrown away afterwards. To
know which side is up, a network must know what is seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from topwork.errors import PlanError
from topwork.learn.loop import Inputs
from topwork.network.loading import Loaded
from topwork.phase import Phase
from topwork.pretraining.material import Material, drawn_rows
from topwork.pretraining.random_views import MILD, RandomViews
from topwork.pretraining.recipe import Recipe, require_share
from topwork.pretraining.stages import Progress, progress_of
from topwork.pretraining.watching import (
    effective_rank,
    online_probe,
    share_found,
    watched_codes,
)

PAPER = "Gidaris, Singh and Komodakis 2018 (RotNet)"
STAGE = "quarter turns"
TURNS = 4
SHOWN = 16


@dataclass(frozen=True)
class RotationRecipe(Recipe):
    """How the network is trained.

    Attributes:
        phase: of the whole network; each image of a batch is seen in all four turns.
        least_area: share of the image that the view that is turned shows at least.
        flip: whether half of the views are mirrored, left for right; of digits they must not be.
    """

    phase: Phase = field(
        default=Phase(epochs=25, batch=64, optimizer="sgd", rate=0.1, weight_decay=5e-4, warmup=1.0)
    )
    least_area: float = MILD.least_area
    flip: bool = True

    def __post_init__(self) -> None:
        require_share(self, "least_area")


class QuarterTurns(nn.Module):
    """Tells the turn of each image in all four of them: maps normalized pixels to losses [n, 2].

    The loss is the mean of the four cross-entropies, and in the second column is how many of the
    four turns are told rightly, as a share. In training a random view of the image is turned.

    Args:
        body: maps pixels to codes [n, d].
        views: maps pixels to random views of them.
        head: maps codes to scores of the turns [n, 4].
    """

    def __init__(self, body: nn.Module, views: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.views, self.head = body, views, head

    def forward(self, pixels: Tensor) -> Tensor:
        """Return losses and what is right."""
        seen = self.views(pixels) if self.training else pixels
        scores = self.head(self.body(turned(seen)))
        answers = torch.arange(TURNS, device=pixels.device).repeat_interleave(len(pixels))
        losses = functional.cross_entropy(scores, answers, reduction="none")
        right = (scores.argmax(1) == answers).to(losses.dtype)
        return torch.stack([losses, right], 1).view(TURNS, -1, 2).mean(0)


def turned(images: Tensor) -> Tensor:
    """Return square images [n, C, H, H] in all turns, [4n, C, H, H], all unturned ones first.

    >>> turned(torch.tensor([[[[1, 2], [3, 4]]]])).flatten(1).tolist()
    [[1, 2, 3, 4], [2, 4, 1, 3], [4, 3, 2, 1], [3, 1, 4, 2]]
    """
    return torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(TURNS)])


def pretrain_rotation(material: Material, recipe: RotationRecipe) -> Iterator[Progress | None]:
    """Train the whole network to tell turns; yield after every step.

    Each epoch tells the share of turns told rightly in images learned from (``right``) and in those
    held out (``held_out_right``), the effective rank of the codes and, where there are labels, the
    accuracy of a linear probe on them. In the interval of ``held_out_right`` an image counts once:
    its four turns are told alike.
    """
    if material.stages.is_finished(STAGE):
        return
    phase = recipe.phase
    inputs, held_out = material.inputs(material.chain.cuts[0], phase.epochs)
    body = material.body()
    strength = replace(MILD, least_area=recipe.least_area, flip=recipe.flip)
    views = RandomViews(material.loaded.backbone.preprocessing, strength)
    codes = watched_codes(body, inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(material.seed)
        head = nn.Linear(codes.shape[1], TURNS)
    module = QuarterTurns(body, views, head).to(material.device)
    for epoch in material.stages.train(STAGE, module, phase, inputs, held_out):
        if epoch is None:
            yield None
            continue
        found = {"right": epoch.accuracy}
        if epoch.validation_accuracy is not None:
            count = len(material.held_out)
            found |= share_found("held_out_right", epoch.validation_accuracy, count)
        found["effective_rank"] = effective_rank(watched_codes(body, inputs))
        found |= online_probe(material, body, inputs, held_out)
        last = epoch.number == phase.epochs
        pictures = {"turns": see(material, inputs)} if last else {}
        yield progress_of(epoch, STAGE, phase, found, pictures)


def require_squares(loaded: Loaded) -> None:
    """Refuse images of other shapes.

    Raises:
        PlanError: naming a size that would do.
    """
    height, width = loaded.backbone.preprocessing.size
    if height != width:
        raise PlanError(
            f"--method rotation: images of {height}x{width} pixels show by their shape how they are"
            f" turned; give a square --size such as {min(height, width)}"
        )


def see(material: Material, inputs: Inputs) -> np.ndarray:
    """Return pictures of some images in all four turns."""
    (images,) = inputs.batch(drawn_rows(SHOWN, len(inputs)), 0)
    return material.pictures(turned(images).view(TURNS, *images.shape).transpose(0, 1))
