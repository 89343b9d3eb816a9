"""Masked prediction of networks that give maps.

Much as in Xie et al. 2022 ("SimMIM"): hidden squares are given as the mean color, and a small
residual network on the last map predicts all pixels. Loss: the absolute error of hidden ones. What
is hidden is hidden again in the map after each layer, as in Tian et al. 2023 ("SparK"):
convolutions would let the holes fill up from their edges, in patterns that no whole image has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from topwork.network.chain import Chain, CutPoint
from topwork.network.cut import segment
from topwork.network.layout import Layout, positions
from topwork.pretraining.decoders import channels_of, decoder, draw_hidden, losses_of_hidden

LEAST_SQUARES = 6
"""Squares along an image's shorter side, at least, where the recipe leaves their size open."""
WIDTH, BLOCKS = 128, 2
"""Of what predicts: channels at most, and residual blocks."""


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

    def pixels(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Return all pixels as told from those that are not hidden, [n, C, H, W].

        Args:
            images: [n, C, H, W].
            hidden: bool [n, 1, H, W].
        """
        values = images.masked_fill(hidden, 0)
        for layer, layout in zip(self.layers, self.layouts, strict=True):
            values = hide(layer(values), layout, hidden)
        return self.decoder(values).float()

    def forward(self, images: Tensor) -> Tensor:
        """Return [n, 2]: the mean absolute error of hidden pixels, and zero."""
        hidden = draw_hidden(len(images), images.shape[2:], self.patch, self.share)
        hidden = hidden.to(images.device)
        errors = (self.pixels(images, hidden) - images).abs().mean(1, keepdim=True)
        return losses_of_hidden(errors, hidden)


def masked_map(chain: Chain, last: CutPoint, patch: int, share: float) -> MaskedMap:
    """Return the module for the layers up to a map, its decoder with random weights.

    Args:
        chain: a network of maps.
        last: where the decoder begins.
        patch: side of a hidden square in pixels; 0 for six to a side or more.
        share: of squares that are hidden.

    Raises:
        PlanError: if such squares do not fill the images.
    """
    pixels = chain.cuts[0]
    side = patch or default_patch(places(pixels))
    draw_hidden(1, places(pixels), side, share)  # does it fill the images?
    cuts = [cut for cut in chain.cuts if cut.depth <= last.depth and is_map(cut)]
    return MaskedMap(
        [segment(chain, below, above) for below, above in pairwise(cuts)],
        [cut.layout for cut in cuts[1:]],
        map_decoder(pixels, last),
        side,
        share,
    )


def hide(maps: Tensor, layout: Layout, hidden: Tensor) -> Tensor:
    """Return maps that are zero where all the pixels of a position are hidden.

    Args:
        maps: [n, C, h, w], or as they are laid out.
        layout: of these.
        hidden: bool [n, 1, H, W].

    >>> import torch
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
