"""Masked prediction: squares of images are hidden, and the network is to tell their pixels.

Transformers as in He et al. 2022 ("Masked autoencoders are scalable vision learners"): only the
patches that are seen go through the blocks, which saves most of the work; a small transformer is
given their codes and, for each hidden patch, one learned token and its position, and predicts the
patch's pixels, less their mean and divided by their deviation. Loss: the squared error.

Other networks that give maps, much as in Xie et al. 2022 ("SimMIM"): hidden squares are given as
the mean color, and a small residual network on the last map predicts all pixels. Loss: the absolute
error. What is hidden is hidden again in the map after each layer, as in Tian et al. 2023 ("SparK"):
convolutions would let the holes fill up from their edges, in patterns that no whole image has.

Either way the loss is that of hidden pixels alone, and the decoder is thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from topwork.errors import PlanError
from topwork.learn.loop import Inputs
from topwork.network.chain import Chain, CutPoint
from topwork.network.cut import segment
from topwork.network.layout import Layout, positions
from topwork.phase import Phase
from topwork.pretraining.autoencoder import settle_statistics
from topwork.pretraining.decoders import (
    channels_of,
    decoder,
    draw_hidden,
    patch_side,
    patched,
    unpatched,
)
from topwork.pretraining.material import Material, drawn_rows
from topwork.pretraining.recipe import Recipe
from topwork.pretraining.stages import Progress, progress_of
from topwork.pretraining.watching import online_probe

PAPER = "He et al. 2022 (masked autoencoders); Xie et al. 2022, Tian et al. 2023 (for maps)"
STAGE = "masked prediction"
LEAST_SQUARES = 6
"""Squares along an image's shorter side, at least, where the recipe leaves their size open."""
WIDTH, HEADS, BLOCKS = 128, 4, 2
"""Of what predicts: channels at most, a transformer's heads of attention, blocks."""
OF_TOKENS, OF_MAPS = 0.75, 0.6
"""Shares that are hidden."""
SAME = 1e-5
"""Below this, numbers differ by how they were computed."""
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


class MaskedMap(nn.Module):
    """Layers that give maps, and a decoder of the last map that predicts all pixels.

    Args:
        layers: each gives a map; the lowest takes [n, C, H, W].
        layouts: of these maps.
        decoder: from the last to [n, C, H, W].
        patch: side of a hidden square.
        share: of squares that are hidden.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        layouts: Sequence[Layout],
        decoder: nn.Module,
        patch: int,
        share: float,
    ) -> None:
        super().__init__()
        self.layers, self.decoder = nn.ModuleList(layers), decoder
        self.layouts, self.patch, self.share = tuple(layouts), patch, share

    def predicted(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Return all pixels as told from those that are not hidden, [n, C, H, W]."""
        values = images.masked_fill(hidden, 0)
        for layer, layout in zip(self.layers, self.layouts, strict=True):
            values = hide(layer(values), layout, hidden)
        return self.decoder(values).float()

    def forward(self, images: Tensor) -> Tensor:
        """Return [n, 2]: the mean absolute error of hidden pixels, and zero."""
        hidden = draw_hidden(len(images), images.shape[2:], self.patch, self.share)
        hidden = hidden.to(images.device)
        errors = (self.predicted(images, hidden) - images).abs().mean(1, keepdim=True)
        return losses_of_hidden(errors, hidden)


def hide(maps: Tensor, layout: Layout, hidden: Tensor) -> Tensor:
    """Return maps that are zero where all the pixels of a position are hidden.

    Args:
        maps: [n, C, h, w], or as they are laid out.
        layout: of these.
        hidden: bool [n, 1, H, W].

    >>> hidden = torch.tensor([[True, True, True, False]]).view(1, 1, 1, 4)
    >>> hide(torch.ones(1, 1, 1, 2), Layout("map"), hidden).tolist()
    [[[[0.0, 1.0]]]]
    """
    size = maps.shape[1:3] if layout.channels_last else maps.shape[2:]
    unseen = functional.adaptive_max_pool2d((~hidden).float(), tuple(size)) == 0
    return maps.masked_fill(unseen.permute(0, 2, 3, 1) if layout.channels_last else unseen, 0)


class Residual(nn.Module):
    """Two convolutions beside a shortcut, norms and ReLUs before them (He et al. 2016).

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(
                part
                for _ in range(2)
                for part in (
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                    nn.Conv2d(width, width, 3, padding=1, bias=False),
                )
            )
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps [n, width, h, w] of such."""
        return maps + self.layers(maps)


class ChannelsFirst(nn.Module):
    """Maps [n, h, w, C] to [n, C, h, w]."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return a view."""
        return maps.permute(0, 3, 1, 2)


def map_decoder(pixels: CutPoint, above: CutPoint) -> nn.Module:
    """Return a residual network from a map to pixels; it is as wide as the map, up to a limit."""
    channels = channels_of(above)
    width = min(WIDTH, channels)
    narrow = replace(
        above,
        shape=(width, *places(above)),
        layout=replace(above.layout, channels_last=False),
    )
    return nn.Sequential(
        ChannelsFirst() if above.layout.channels_last else nn.Identity(),
        nn.Conv2d(channels, width, 1),
        *(Residual(width) for _ in range(BLOCKS)),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        decoder(pixels, narrow),
    )


class MaskedTokens(nn.Module):
    """A transformer that is given the patches that are seen, and a small one that tells the rest.

    Args:
        embedding: [n, C, H, W] to tokens [n, prefix + patches, D], positions added.
        blocks: from any number of tokens to as many.
        prefix: tokens that stand for no position.
        width: D.
        grid: patches down and across.
        channels: of an image.
        own: side of a patch in pixels.
        patch: side of a hidden square in pixels.
        share: of squares that are hidden.
    """

    def __init__(
        self,
        embedding: nn.Module,
        blocks: nn.Module,
        *,
        prefix: int,
        width: int,
        grid: tuple[int, int],
        channels: int,
        own: int,
        patch: int,
        share: float,
    ) -> None:
        super().__init__()
        self.embedding, self.blocks = embedding, blocks
        self.prefix, self.own, self.patch, self.share = prefix, own, patch, share
        self.narrow = nn.Linear(width, WIDTH)
        self.hidden_token = nn.Parameter(0.02 * torch.randn(WIDTH))
        self.positions = nn.Parameter(0.02 * torch.randn(prefix + math.prod(grid), WIDTH))
        self.decoder = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
                )
                for _ in range(BLOCKS)
            ),
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, channels * own * own),
        )

    def predicted(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Return the patches as told from those that are not hidden, normalized.

        Args:
            images: [n, C, H, W].
            hidden: bool [n, 1, H, W], as many of each image.

        Returns:
            [n, patches, C * own * own].
        """
        unseen = patched(hidden.float(), self.own)[:, :, 0].bool()
        count = int((~unseen[0]).sum())
        seen = unseen.byte().argsort(dim=1, stable=True)[:, :count]
        seen = torch.cat([without_position(seen, self.prefix), seen + self.prefix], 1).unsqueeze(2)
        tokens = self.embedding(images)
        codes = self.blocks(tokens.gather(1, seen.expand(-1, -1, tokens.shape[2])))
        codes = self.narrow(codes).float()
        everything = self.hidden_token.expand(len(images), len(self.positions), -1)
        everything = everything.scatter(1, seen.expand(-1, -1, codes.shape[2]), codes)
        return self.decoder(everything + self.positions)[:, self.prefix :].float()

    def forward(self, images: Tensor) -> Tensor:
        """Return [n, 2]: the mean squared error of hidden patches' normalized pixels, and zero."""
        hidden = draw_hidden(len(images), images.shape[2:], self.patch, self.share)
        hidden = hidden.to(images.device)
        patches = patched(images, self.own)
        mean, deviation = patch_statistics(patches)
        errors = self.predicted(images, hidden) - (patches - mean) / deviation
        squares = unpatched(errors.square(), self.own, images.shape[2:])
        return losses_of_hidden(squares.mean(1, keepdim=True), hidden)


def without_position(like: Tensor, count: int) -> Tensor:
    """Return the numbers of the tokens that stand for no position, int64 [n, count]."""
    return torch.arange(count, device=like.device).expand(len(like), -1)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and deviations of patches [n, patches, d], each [n, patches, 1]."""
    mean = patches.mean(2, keepdim=True)
    return mean, (patches.var(2, keepdim=True) + 1e-6).sqrt()


def losses_of_hidden(errors: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean of errors [n, 1, H, W] where something is hidden, and zero, [n, 2]."""
    losses = (errors * hidden).sum((1, 2, 3)) / hidden.sum((1, 2, 3))
    return torch.stack([losses, torch.zeros_like(losses)], 1)


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
    pixels, last = chain.cuts[0], predicts_from(chain)
    tokens = [cut for cut in chain.cuts if cut.layout.kind == "tokens"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if len(tokens) > 1 and takes_any_tokens(chain, tokens[0], last):
            return masked_tokens(chain, recipe, tokens[0], last)
        if not tokens and is_map(last):
            side = recipe.patch or default_patch(places(pixels))
            draw_hidden(1, places(pixels), side, OF_MAPS)  # does it fill the images?
            cuts = [cut for cut in chain.cuts if cut.depth <= last.depth and is_map(cut)]
            return MaskedMap(
                [segment(chain, below, above) for below, above in pairwise(cuts)],
                [cut.layout for cut in cuts[1:]],
                map_decoder(pixels, last),
                side,
                recipe.mask_share or OF_MAPS,
            )
    raise PlanError(
        "--method masked takes ConvNets, and vision transformers that add positions to their"
        " patches; give --backbone such as topwork:cifar_resnet20 or timm:vit_tiny_patch16_224"
    )


def predicts_from(chain: Chain) -> CutPoint:
    """Return the highest cut point with tokens or, without any, with more than one position."""
    tokens = [cut for cut in chain.cuts if cut.layout.kind == "tokens"]
    maps = [cut for cut in chain.cuts[1:] if is_map(cut)]
    return (tokens or maps or [chain.top])[-1]


def places(cut: CutPoint) -> tuple[int, ...]:
    """Return height and width of a map; nothing of what is none."""
    return positions(cut.shape, cut.layout) if cut.layout.kind == "map" else (0,)


def is_map(cut: CutPoint) -> bool:
    """Say whether a map of more than one position crosses here."""
    return math.prod(places(cut)) > 1


def default_patch(size: tuple[int, ...]) -> int:
    """Return the largest side of squares that fill an image, six along its shorter side or more.

    >>> [default_patch((side, side)) for side in (28, 32, 64, 224)]
    [4, 4, 8, 32]
    """
    sides = range(1, max(1, min(size) // LEAST_SQUARES) + 1)
    return max(side for side in sides if all(length % side == 0 for length in size))


def masked_tokens(
    chain: Chain, recipe: MaskedRecipe, first: CutPoint, last: CutPoint
) -> MaskedTokens:
    """Return the module for a transformer whose tokens lie between two cut points."""
    channels, height, width = chain.cuts[0].shape
    own = patch_side(height * width, first.shape[0] - first.layout.prefix)
    if own is None or height % own or width % own:
        raise PlanError(
            f"--method masked: {height}x{width} pixels are no whole number of the network's"
            " patches; give another --size"
        )
    if recipe.patch % own:
        raise PlanError(
            f"recipe: patch is {recipe.patch}; give a multiple of the network's own, {own}, or 0"
        )
    embedding = segment(chain, chain.cuts[0], first)
    if not keeps_apart(embedding, chain, first.layout.prefix, own):
        raise PlanError(
            "--method masked: this network's patches see each other before its blocks do, so what"
            " is hidden would show; give --backbone such as timm:vit_tiny_patch16_224"
        )
    return MaskedTokens(
        embedding,
        segment(chain, first, last),
        prefix=first.layout.prefix,
        width=first.shape[1],
        grid=(height // own, width // own),
        channels=channels,
        own=own,
        patch=recipe.patch or own,
        share=recipe.mask_share or OF_TOKENS,
    )


@torch.no_grad()
def keeps_apart(embedding: nn.Module, chain: Chain, prefix: int, own: int) -> bool:
    """Say whether a patch changes its own token alone, as where no convolution came before."""
    images = torch.randn(2, *chain.cuts[0].shape)
    images[1] = images[0]
    images[1, :, :own, :own] += 1
    tokens = embedding.eval()(images.to(chain.device))
    differ = (tokens[0] - tokens[1]).abs().amax(1) > SAME
    return differ.nonzero().flatten().tolist() == [prefix]


@torch.no_grad()
def takes_any_tokens(chain: Chain, first: CutPoint, last: CutPoint) -> bool:
    """Say whether layers take tokens in any order and number, as if positions are added below."""
    prefix, count = first.layout.prefix, first.shape[0]
    if (last.layout.prefix, last.shape[0]) != (prefix, count):
        return False
    order = torch.cat([torch.arange(prefix), prefix + torch.randperm(count - prefix)])
    tokens = torch.randn(2, *first.shape)
    blocks = segment(chain, first, last).eval()
    several = tokens, tokens[:, order], tokens[:, : prefix + 1]
    try:
        found, shuffled, few = (blocks(some.to(chain.device)).cpu() for some in several)
    except (RuntimeError, IndexError, ValueError):  # a size that is fixed somewhere
        return False
    if found.shape[1:] != last.shape or few.shape[1] != prefix + 1:
        return False
    return torch.allclose(shuffled, found[:, order], atol=1e-3)


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
    found = module.predicted(images, hidden)
    if isinstance(module, MaskedTokens):
        mean, deviation = patch_statistics(patched(images, module.own))
        found = unpatched(found * deviation + mean, module.own, size)
    return {
        "images": material.pictures(images),
        "masked": material.pictures(images.masked_fill(hidden, 0)),
        "predicted": material.pictures(torch.where(hidden, found, images)),
    }
