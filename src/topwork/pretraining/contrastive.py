"""Contrastive pretraining: two random views of an image get codes that are alike.

Either by telling them from the other images of the batch: SimCLR (Chen et al. 2020, "A simple
framework for contrastive learning of visual representations"). With z the 2n projections of a
batch's views, of unit length, and j the other view of i's image, the loss of i is

    NT-Xent_i = -z_i.z_j / t + log sum_{k != i} exp(z_i.z_k / t).

Or without any comparison of images: VICReg (Bardes et al. 2022, "Variance-invariance-covariance
regularization"). With a and b the projections [n, d] of both views the loss of the batch is

    25 mean (a - b)^2 + 25 (v(a) + v(b)) / 2 + (c(a) + c(b)),

v the mean of max(0, 1 - deviation) over the columns and c the sum of the squared covariances
between two columns, over d (weights and means as in the authors' code).

The projections are a small network's on top of the codes at L, of two linear layers if the recipe
does not say otherwise (VICReg's has three, and 8192 units in each). It is thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from topwork.errors import PlanError
from topwork.learn.loop import Inputs, own_randomness
from topwork.phase import Phase, require
from topwork.pretraining.material import Material, drawn_rows, outputs_of
from topwork.pretraining.random_views import STRONG, RandomViews
from topwork.pretraining.recipe import Recipe, require_positive, require_share
from topwork.pretraining.stages import Progress, progress_of
from topwork.pretraining.watching import (
    deviation,
    effective_rank,
    online_probe,
    require_alive,
    watched_codes,
)

PAPER = "Chen et al. 2020 (SimCLR); Bardes, Ponce and LeCun 2022 (VICReg)"
LOSSES = ("nt-xent", "vicreg")
WIDTHS = {"nt-xent": (256, 128), "vicreg": (512, 512)}
STAGE = "two views"
EPSILON = 1e-4
"""Added to variances under the root (Bardes et al. 2022)."""
SHOWN = 27
"""Images that are pictured with two views each, in nine rows of nine."""


@dataclass(frozen=True)
class ContrastiveRecipe(Recipe):
    """How views are compared.

    Attributes:
        phase: of the whole network and the projector.
        loss: "nt-xent" or "vicreg".
        temperature: t of NT-Xent.
        invariance: weight of how far two views of an image lie apart (VICReg, as the next two).
        variance: of columns that vary too little.
        covariance: of columns that vary together.
        projector: widths of its layers; none stands for those that suit the loss.
        least_area: share of the image that a view shows at least.
        flip: whether half of the views are mirrored, left for right; of digits they must not be.
    """

    phase: Phase = field(
        default=Phase(
            epochs=25, batch=256, optimizer="adamw", rate=2e-3, weight_decay=1e-2, warmup=1.0
        )
    )
    loss: str = "nt-xent"
    temperature: float = 0.5
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0
    projector: tuple[int, ...] = ()
    least_area: float = STRONG.least_area
    flip: bool = True

    def __post_init__(self) -> None:
        require("recipe: loss", self.loss, LOSSES)
        require_positive(self, "temperature")
        require_share(self, "least_area")
        if min(self.invariance, self.variance, self.covariance) < 0:
            raise PlanError("recipe: invariance, variance and covariance are weights; none below 0")
        if any(type(width) is not int or width < 1 for width in self.projector):
            raise PlanError(
                f"recipe: projector is {list(self.projector)}; give widths such as [256, 128]"
            )
        if self.phase.batch < 2 or self.phase.at_once is not None:
            raise PlanError(
                "recipe: phase: a contrastive loss is that of a whole batch; give a batch of 2 or"
                " more, and leave out at_once"
            )


class TwoViews(nn.Module):
    """Compares two random views of each image: maps normalized pixels to losses [n, 2].

    In the second column is how many of both views are nearer to each other than to any other view
    of the batch, by the angle between projections.

    Args:
        body: maps pixels to codes [n, d].
        views: maps pixels to random views of them.
        projector: maps codes to projections.
        recipe: says which loss.

    Attributes:
        deviation: of the projections of the last batch learned from.
    """

    deviation: Tensor

    def __init__(
        self, body: nn.Module, views: nn.Module, projector: nn.Module, recipe: ContrastiveRecipe
    ) -> None:
        super().__init__()
        self.body, self.views, self.projector = body, views, projector
        self.recipe = recipe
        self.register_buffer("deviation", torch.zeros(()))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return losses, whose mean is the loss of the batch, and what is right."""
        both = torch.cat([self.views(pixels), self.views(pixels)])
        projections = self.projector(self.body(both)).float()
        with torch.autocast(pixels.device.type, enabled=False):
            if self.training:
                self.deviation.copy_(deviation(self.compared(projections)))
            first, second = projections.chunk(2)
            recipe = self.recipe
            if recipe.loss == "nt-xent":
                losses = nt_xent(first, second, recipe.temperature)
            else:
                weights = recipe.invariance, recipe.variance, recipe.covariance
                losses = vicreg(first, second, *weights)
            right = found_again(first.detach(), second.detach())
        return torch.stack([losses, right], 1)

    def compared(self, projections: Tensor) -> Tensor:
        """Return projections [n, d] as the loss compares them, meant to deviate by about 1."""
        if self.recipe.loss == "vicreg":
            return projections
        return functional.normalize(projections, dim=1) * projections.shape[1] ** 0.5


def projector_of(codes: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Return linear layers, batch norm and ReLU between them."""
    layers: list[nn.Module] = []
    for width in widths[:-1]:
        layers += [nn.Linear(codes, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        codes = width
    return nn.Sequential(*layers, nn.Linear(codes, widths[-1], bias=False))


def similarities(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine of each of 2n views with each, [2n, 2n]; with itself minus infinity."""
    views = functional.normalize(torch.cat([first, second]), dim=1)
    found = views @ views.T
    return found.masked_fill(
        torch.eye(len(views), dtype=torch.bool, device=found.device), -torch.inf
    )


def partners(count: int, device: torch.device) -> Tensor:
    """Return for each of 2n views which is the other one of its image.

    >>> partners(2, torch.device("cpu")).tolist()
    [2, 3, 0, 1]
    """
    return torch.arange(2 * count, device=device).roll(count)


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Return the normalized, temperature-scaled cross-entropy of each image, its views' mean.

    Args:
        first: projections of one view of each image, float32 [n, d].
        second: of the other.
        temperature: above 0.

    Returns:
        [n]; their mean is the loss of the batch.
    """
    scores = similarities(first, second) / temperature
    losses = functional.cross_entropy(scores, partners(len(first), scores.device), reduction="none")
    return losses.view(2, -1).mean(0)


def found_again(first: Tensor, second: Tensor) -> Tensor:
    """Return how many of the two views of each image have each other for the nearest: 0, .5 or 1.

    Args:
        first: projections of one view of each image, float32 [n, d].
        second: of the other.
    """
    nearest = similarities(first, second).argmax(1)
    return (nearest == partners(len(first), nearest.device)).float().view(2, -1).mean(0)


def vicreg(
    first: Tensor, second: Tensor, invariance: float, variance: float, covariance: float
) -> Tensor:
    """Return variance-invariance-covariance regularization, of each image.

    Args:
        first: projections of one view of each image, float32 [n, d].
        second: of the other.
        invariance: weight of the squared distance of both.
        variance: of deviations below 1.
        covariance: of covariances.

    Returns:
        [n]; their mean is the loss of the batch, and only in the first term do they differ.
    """
    losses = invariance * (first - second).square().mean(1)
    for views in (first, second):
        centered = views - views.mean(0)
        product = centered.T @ centered / max(1, len(views) - 1)
        variances = product.diagonal()
        short = (1 - (variances + EPSILON).sqrt()).relu().mean()
        together = (product.square().sum() - variances.square().sum()) / len(variances)
        losses = losses + variance * short / 2 + covariance * together
    return losses


def pretrain_contrastive(
    material: Material, recipe: ContrastiveRecipe
) -> Iterator[Progress | None]:
    """Train the whole network on two views of each image; yield after every step.

    Each epoch tells the share of views found again among those of the batch, the effective rank of
    the codes, the deviation of the last batch's projections and, where there are labels, the
    accuracy of a linear probe on the codes. Of held-out images no loss is told.

    Raises:
        PlanError: if the codes collapse.
    """
    if material.stages.is_finished(STAGE):
        return
    phase = recipe.phase
    inputs, held_out = material.inputs(material.chain.cuts[0], phase.epochs)
    body = material.body()
    strength = replace(STRONG, least_area=recipe.least_area, flip=recipe.flip)
    views = RandomViews(material.loaded.backbone.preprocessing, strength)
    width = outputs_of(body, inputs, [0]).shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(material.seed)
        projector = projector_of(width, recipe.projector or WIDTHS[recipe.loss])
    module = TwoViews(body, views, projector, recipe).to(material.device)
    # Both losses depend on how many images are judged at once: the fewer there are to tell one
    # from, the lower is NT-Xent; the fewer covariances are of, the larger they come out by chance.
    # That of held-out images, not as many as a batch, would compare with nothing.
    for epoch in material.stages.train(STAGE, module, phase, inputs):
        if epoch is None:
            yield None
            continue
        codes = watched_codes(body, inputs)
        found = {
            "found_again": epoch.accuracy,
            "effective_rank": effective_rank(codes),
            "deviation": float(module.deviation),
            **online_probe(material, body, inputs, held_out),
        }
        highest_rank = min(codes.shape[0] - 1, codes.shape[1])
        require_alive(material.stages.records, STAGE, found, highest_rank)
        last = epoch.number == phase.epochs
        pictures = {"views": see(material, views, inputs)} if last else {}
        yield progress_of(epoch, STAGE, phase, found, pictures)


def see(material: Material, views: RandomViews, inputs: Inputs) -> np.ndarray:
    """Return pictures of some images, each followed by two views of it."""
    (images,) = inputs.batch(drawn_rows(SHOWN, len(inputs)), 0)
    with own_randomness(material.seed, material.device):
        rows = torch.stack([images, views(images), views(images)], 1)
    return material.pictures(rows)
