"""Masked prediction of transformers that add positions to patches.

He et al. 2022 ("Masked autoencoders are scalable vision learners"): only the patches that are seen
go through the blocks, which saves most of the work; a small transformer is given their codes and,
for each hidden patch, one learned token and its position, and predicts the patch's pixels, less
their mean and divided by their deviation. Loss: the squared error of hidden patches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from topwork.errors import PlanError
from topwork.network.chain import Chain, CutPoint
from topwork.network.cut import segment
from topwork.pretraining.decoders import (
    draw_hidden,
    losses_of_hidden,
    patch_side,
    patched,
    unpatched,
)

WIDTH, HEADS, BLOCKS = 128, 4, 2
"""Of what predicts: width, heads of attention, blocks."""
SAME = 1e-5
"""Below this, numbers differ by how they were computed."""


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

    def pixels(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Return all pixels as told from patches that are not hidden, [n, C, H, W].

        What is predicted are normalized pixels; mean and deviation are taken from the images.
        """
        mean, deviation = patch_statistics(patched(images, self.own))
        told = self.predicted(images, hidden) * deviation + mean
        return unpatched(told, self.own, images.shape[2:])

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


def masked_tokens(
    chain: Chain, first: CutPoint, last: CutPoint, patch: int, share: float
) -> MaskedTokens:
    """Return the module for a transformer, what predicts with random weights.

    Args:
        chain: the transformer.
        first: its lowest cut point with tokens.
        last: its highest.
        patch: side of a hidden square in pixels, a multiple of its own patches'; 0 for these.
        share: of squares that are hidden.

    Raises:
        PlanError: if the squares do not suit, or a patch sees others before the blocks.
    """
    channels, height, width = chain.cuts[0].shape
    own = patch_side(height * width, first.shape[0] - first.layout.prefix)
    if own is None or height % own or width % own:
        raise PlanError(
            f"--method masked: {height}x{width} pixels are no whole number of the network's"
            " patches; give another --size"
        )
    if patch % own:
        raise PlanError(
            f"recipe: patch is {patch}; give a multiple of the network's own, {own}, or 0"
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
        patch=patch or own,
        share=share,
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
