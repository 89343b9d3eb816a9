"""Masked prediction: squares of images are hidden, and the network is to tell their pixels.

Networks of tokens are given what is seen (see :mod:`topwork.pretraining.masked_tokens`), networks
of maps holes (see :mod:`topwork.pretraining.masked_maps`). Either way the loss is that of hidden
pixels alone, and the decoder is thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from topwork.errors import PlanError
from topwork.learn.loop import Inputs
from topwork.network.chain import Chain, CutPoint
from topwork.phase import Phase
from topwork.pretraining.autoencoder import settle_statistics
from topwork.pretraining.decoders import draw_hidden
from topwork.pretraining.masked_maps import MaskedMap, is_map, masked_map
from topwork.pretraining.masked_tokens import MaskedTokens, masked_tokens, takes_any_tokens
from topwork.pretraining.material import Material, drawn_rows
from topwork.pretraining.recipe import Recipe
from topwork.pretraining.stages import Progress, progress_of
from topwork.pretraining.watching import online_probe

PAPER = "He et al. 2022 (masked autoencoders); Xie et al. 2022, Tian et al. 2023 (for maps)"
STAGE = "masked prediction"
OF_TOKENS, OF_MAPS = 0.75, 0.6
"""Shares that are hidden."""
SHOWN = 36


@dataclass(frozen=True)
class MaskedRecipe(Recipe):
    """How a network learns to predict what is hidden.

    Attributes:
        phase: of the training.
        mask_share: share of the squares that are hidden; 0 for 0.75 of a transformer's, as in the
            paper, and 0.6 of others'.
        patch: side of a square in pixels, a divisor of the image's sides, and of a transformer a
            multiple of its patches; 0 for a transformer's own, else for six to a side or more.
    """

    phase: Phase = field(
        default=Phase(
            epochs=30, batch=128, optimizer="adamw", rate=1e-3, weight_decay=0.05, warmup=1.0
        )
    )
    mask_share: float = 0.0
    patch: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.mask_share < 1 or self.patch < 0:
            raise PlanError("recipe: mask_share lies between 0 and 1, and patch is not negative")


def pretrain_masked(material: Material, recipe: MaskedRecipe) -> Iterator[Progress | None]:
    """Train a network to predict what is hidden of images; yield after every step.

    Of a network whose last map has a single position, or is flattened, the layers above the last
    map with more are left as they are. Each epoch tells what a linear head on the codes is worth,
    where there are labels.

    Raises:
        PlanError: if the network gives neither maps nor tokens that could be left out, or lets a
            patch see others before; if the recipe's squares do not suit its patches, or the images.
    """
    if material.stages.is_finished(STAGE):
        return
    phase = recipe.phase
    inputs, held_out = material.inputs(material.chain.cuts[0], phase.epochs)
    module = make_module(material.chain, recipe, material.seed).to(material.device)
    body = material.body(predicts_from(material.chain))
    for epoch in material.stages.train(STAGE, module, phase, inputs, held_out):
        if epoch is None:
            yield None
            continue
        last = epoch.number == phase.epochs
        pictures = see(material, module, held_out or inputs) if last else {}
        if last or material.classes is not None:
            settle_statistics(body, inputs)
        found = online_probe(material, body, inputs, held_out)
        yield progress_of(epoch, STAGE, phase, found, pictures)


def make_module(chain: Chain, recipe: MaskedRecipe, seed: int) -> MaskedMap | MaskedTokens:
    """Return what is trained, its decoder with random weights; raise as `pretrain_masked` does."""
    last = predicts_from(chain)
    tokens = [cut for cut in chain.cuts if cut.layout.kind == "tokens"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if len(tokens) > 1 and takes_any_tokens(chain, tokens[0], last):
            share = recipe.mask_share or OF_TOKENS
            return masked_tokens(chain, tokens[0], last, recipe.patch, share)
        if not tokens and is_map(last):
            return masked_map(chain, last, recipe.patch, recipe.mask_share or OF_MAPS)
    raise PlanError(
        "--method masked takes ConvNets, and vision transformers that add positions to their"
        " patches; give --backbone such as topwork:cifar_resnet20 or timm:vit_tiny_patch16_224"
    )


def predicts_from(chain: Chain) -> CutPoint:
    """Return the highest cut point with tokens or, without any, with more than one position."""
    tokens = [cut for cut in chain.cuts if cut.layout.kind == "tokens"]
    maps = [cut for cut in chain.cuts[1:] if is_map(cut)]
    return (tokens or maps or [chain.top])[-1]


@torch.no_grad()
def see(
    material: Material, module: MaskedMap | MaskedTokens, inputs: Inputs
) -> dict[str, np.ndarray]:
    """Return pictures: images, what is seen of them, and with it what is predicted of the rest."""
    (images,) = inputs.batch(drawn_rows(SHOWN, len(inputs)), 0)
    size = images.shape[2:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(material.seed)
        hidden = draw_hidden(len(images), size, module.patch, module.share).to(images.device)
    told = torch.where(hidden, module.pixels(images, hidden), images)
    return {
        "images": material.pictures(images),
        "masked": material.pictures(images.masked_fill(hidden, 0)),
        "predicted": material.pictures(told),
    }
