"""Decoders: from what a block of layers gives back to what it was given, by the shapes alone.

They are as plain as the shapes allow, a linear map or a convolution for each block, so that the
work is left to the block: it is what is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from topwork.errors import PlanError
from topwork.network.chain import CutPoint
from topwork.network.layout import positions


def unrolled_decoder(cuts: Sequence[CutPoint]) -> nn.Module:
    """Return a decoder from the last of some cut points to the first, by way of the others.

    Between its steps lie a norm, where there are positions, and a ReLU.

    Args:
        cuts: two or more, the lowest first.
    """
    parts: list[nn.Module] = []
    for below, above in reversed(list(pairwise(cuts))):
        if parts:
            parts += between(above)
        parts.append(decoder(below, above))
    return nn.Sequential(*parts)


def between(cut: CutPoint) -> list[nn.Module]:
    """Return what follows a decoder's step to a cut point if another step follows."""
    if cut.layout.kind == "map" and not cut.layout.channels_last:
        return [nn.BatchNorm2d(cut.shape[0]), nn.ReLU()]
    if cut.layout.kind in ("map", "tokens"):
        return [nn.LayerNorm(cut.shape[-1]), nn.ReLU()]
    return [nn.ReLU()]


def decoder(below: CutPoint, above: CutPoint) -> nn.Module:
    """Return a linear map from values at one cut point to such at another: [n, ...] to [n, ...].

    Of maps it is a convolution, of tokens the same map for each token, else one matrix.
    """
    places = [positions(cut.shape, cut.layout) for cut in (below, above)]
    kinds = below.layout.kind, above.layout.kind
    if kinds == ("map", "map") and places[1] != (1, 1):
        return MapDecoder(below, above)
    if kinds == ("tokens", "tokens") and places[0] == places[1]:
        return nn.Linear(above.shape[-1], below.shape[-1])
    if kinds == ("map", "tokens") and not below.layout.channels_last:
        rows, columns = places[0]
        side = patch_side(rows * columns, places[1][0] - above.layout.prefix)
        if side and rows % side == columns % side == 0:
            return TokenDecoder(below, above, side)
    return VectorDecoder(below.shape, above.bytes // 4)


def patch_side(pixels: int, patches: int) -> int | None:
    """Return the side of the squares that so many pixels make so many of, if they do.

    >>> patch_side(32 * 32, 64), patch_side(32 * 32, 65)
    (4, None)
    """
    side = round((pixels / patches) ** 0.5) if patches else 0
    return side if side and side * side * patches == pixels else None


class MapDecoder(nn.Module):
    """A 3x3 convolution of a map, to a larger one if need be.

    To one larger by a whole factor it gives each position's square at once (sub-pixel convolution,
    Shi et al. 2016); to others, the map is enlarged first, each position by its nearest.
    """

    def __init__(self, below: CutPoint, above: CutPoint) -> None:
        super().__init__()
        self.below, self.above = below.layout, above.layout
        self.size, smaller = (positions(cut.shape, cut.layout) for cut in (below, above))
        inputs, outputs = (channels_of(cut) for cut in (above, below))
        factor = self.size[0] // smaller[0]
        self.factor = factor if self.size == tuple(factor * side for side in smaller) else 0
        self.conv = nn.Conv2d(inputs, outputs * max(1, self.factor) ** 2, 3, padding=1)

    def forward(self, values: Tensor) -> Tensor:
        """Return values as they are laid out below."""
        maps = values.permute(0, 3, 1, 2) if self.above.channels_last else values
        if self.factor:
            maps = functional.pixel_shuffle(self.conv(maps), self.factor)
        else:
            maps = self.conv(functional.interpolate(maps, self.size))
        return maps.permute(0, 2, 3, 1) if self.below.channels_last else maps


class TokenDecoder(nn.Module):
    """A linear map from each token to its square of the map; tokens of no position are left out."""

    def __init__(self, below: CutPoint, above: CutPoint, side: int) -> None:
        super().__init__()
        self.prefix, self.side, self.size = above.layout.prefix, side, below.shape[1:]
        self.linear = nn.Linear(above.shape[-1], below.shape[0] * side**2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return maps [n, C, H, W]."""
        return unpatched(self.linear(tokens[:, self.prefix :]), self.side, self.size)


class VectorDecoder(nn.Module):
    """A linear map from all that there is to all that there was."""

    def __init__(self, shape: tuple[int, ...], inputs: int) -> None:
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(inputs, torch.Size(shape).numel())

    def forward(self, values: Tensor) -> Tensor:
        """Return values of the shape below."""
        return self.linear(values.flatten(1)).unflatten(1, self.shape)


class TiedDecoder(nn.Module):
    """The transposed weights of a linear layer, with biases of its own, as in the papers."""

    def __init__(self, shape: tuple[int, ...], linear: nn.Linear) -> None:
        super().__init__()
        self.shape, self.linear = shape, linear
        self.bias = nn.Parameter(linear.weight.new_zeros(linear.in_features))

    def forward(self, codes: Tensor) -> Tensor:
        """Return values of the shape below."""
        values = functional.linear(codes, self.linear.weight.T, self.bias)
        return values.unflatten(1, self.shape)


def channels_of(cut: CutPoint) -> int:
    """Return the number of channels of a map."""
    return cut.shape[-1] if cut.layout.channels_last else cut.shape[0]


def patched(maps: Tensor, side: int) -> Tensor:
    """Return the squares of maps row by row, [n, C, H, W] to [n, squares, C * side * side]."""
    return functional.unfold(maps, side, stride=side).transpose(1, 2)


def unpatched(patches: Tensor, side: int, size: Sequence[int]) -> Tensor:
    """Return the maps that `patched` made squares of.

    >>> maps = torch.arange(48.0).reshape(1, 3, 4, 4)
    >>> torch.equal(unpatched(patched(maps, 2), 2, (4, 4)), maps)
    True
    """
    return functional.fold(patches.transpose(1, 2), tuple(size), side, stride=side)


def draw_hidden(count: int, size: Sequence[int], side: int, share: float) -> Tensor:
    """Draw which squares of images are hidden, as many of each image; the global seed tells.

    Args:
        count: of images.
        size: of each in pixels.
        side: of the squares in pixels, a divisor of both.
        share: of squares to hide; at least one is, and one is not.

    Returns:
        bool [count, 1, H, W] on the CPU, so that it is the same on all devices.

    Raises:
        PlanError: if the squares do not fill the images.

    >>> draw_hidden(3, (8, 4), 2, 0.5).sum((1, 2, 3))
    tensor([16, 16, 16])
    """
    rows, columns = (length // side for length in size)
    squares = rows * columns
    if [rows * side, columns * side] != list(size) or squares < 2:
        raise PlanError(
            f"recipe: patch is {side}, but images have {size[0]}x{size[1]} pixels; give a divisor"
            " of both, smaller than the image"
        )
    ranks = torch.rand(count, squares).argsort(1).argsort(1)
    hidden = ranks < min(squares - 1, max(1, round(share * squares)))
    maps = hidden.reshape(count, 1, rows, columns)
    return maps.repeat_interleave(side, 2).repeat_interleave(side, 3)


def losses_of_hidden(errors: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean of errors [n, 1, H, W] where something is hidden, and zero, [n, 2]."""
    losses = (errors * hidden).sum((1, 2, 3)) / hidden.sum((1, 2, 3))
    return torch.stack([losses, torch.zeros_like(losses)], 1)
