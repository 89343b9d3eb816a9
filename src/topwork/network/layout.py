"""How the tensor at a cut point is laid out: a map of channels, tokens, or a vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

Kind = Literal["map", "tokens", "vector", "other"]
SQUARE = (1, 1)  # height and width of an input of unknown size
BORDER = 2  # positions by which a map's sides may miss the ratio of the input's


@dataclass(frozen=True)
class Layout:
    """The layout of one image's tensor.

    Attributes:
        kind: "map" (channels over positions in two dimensions), "tokens" (a sequence of
            vectors), "vector", or "other" (anything else, which can only be flattened).
        channels_last: whether the channels are the last dimension of a map.
        prefix: tokens that stand for no position (class and register tokens), always first.
    """

    kind: Kind
    channels_last: bool = False
    prefix: int = 0

    def __str__(self) -> str:
        if self.kind == "map":
            return "map, channels last" if self.channels_last else "map"
        if self.kind == "tokens":
            return f"tokens, {self.prefix} prefix" if self.prefix else "tokens"
        return self.kind


def layouts_of(shapes: Sequence[tuple[int, ...]], network: nn.Module) -> list[Layout]:
    """Tell the layouts of one image's tensors at a network's cut points, the input first.

    An image is channels first. A map that could be either is as the last one that could not.

    >>> shapes = [(3, 384, 384), (96, 96, 96), (12, 12, 768)]
    >>> [str(layout) for layout in layouts_of(shapes, nn.Identity())]
    ['map', 'map, channels last', 'map, channels last']
    """
    image, *others = shapes
    if len(image) != 3:
        return [layout_of(shape, network) for shape in shapes]
    size = image[1], image[2]
    orders = [has_channels_last(shape, size) for shape in others if len(shape) == 3]
    certain = [order for order in orders if order is not None]
    usual = Layout("map", channels_last=bool(certain and certain[-1]))
    return [Layout("map")] + [
        usual
        if len(shape) == 3 and has_channels_last(shape, size) is None
        else layout_of(shape, network, size)
        for shape in others
    ]


def layout_of(shape: tuple[int, ...], network: nn.Module, size: tuple[int, int] = SQUARE) -> Layout:
    """Tell the layout of one image's tensor from its shape.

    Of a map's three dimensions the two that are alike to the input's height and width are
    positions. Prefix tokens are what the network says, else what exceeds a grid of such sides.

    Args:
        shape: of the tensor.
        network: what it is from.
        size: height and width of the input, or any two numbers of that ratio.

    >>> layout_of((64, 7, 7), nn.Identity()), layout_of((7, 7, 64), nn.Identity()).channels_last
    (Layout(kind='map', channels_last=False, prefix=0), True)
    >>> layout_of((197, 192), nn.Identity())
    Layout(kind='tokens', channels_last=False, prefix=1)
    >>> layout_of((64, 64, 48), nn.Identity(), (256, 192)).channels_last
    False
    """
    if len(shape) == 1:
        return Layout("vector")
    if len(shape) == 2:
        declared = getattr(network, "num_prefix_tokens", None)
        inferred = shape[0] - most_positions(shape[0], size)
        return Layout("tokens", prefix=declared if isinstance(declared, int) else inferred)
    if len(shape) == 3:
        return Layout("map", channels_last=bool(has_channels_last(shape, size)))
    return Layout("other")


def has_channels_last(shape: tuple[int, ...], size: tuple[int, int]) -> bool | None:
    """Say whether a map's channels are its last dimension; None if they could be the first too."""
    first, last = are_alike(shape[1:], size), are_alike(shape[:2], size)
    return None if first and last else last


def are_alike(sides: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Say whether two sides can be what layers make of an input's height and width.

    Layers treat both alike, so equal ones stay equal; others stay in about their ratio, each
    rounded, or less by a border, by up to `BORDER` positions.

    >>> [are_alike(sides, (224, 160)) for sides in ((7, 5), (5, 3), (64, 56))]
    [True, True, False]
    """
    height, width = size
    if height == width:
        return sides[0] == sides[1]
    return abs(sides[0] * width - sides[1] * height) <= BORDER * (height + width)


def most_positions(tokens: int, size: tuple[int, int]) -> int:
    """Return the most positions, of so many tokens or fewer, that a grid over an input has.

    >>> most_positions(197, (224, 224)), most_positions(169, (224, 192))
    (196, 168)
    """
    height, width = size
    if height == width:
        return math.isqrt(tokens) ** 2
    strides = range(1, max(size) + 1)
    grids = {(height // step) * (width // step) for step in strides}
    grids |= {-(-height // step) * -(-width // step) for step in strides}
    return max(grid for grid in grids if grid <= tokens)


def positions(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """Return the part of a shape that is positions rather than channels.

    >>> positions((64, 7, 7), Layout("map")), positions((512,), Layout("vector"))
    ((7, 7), ())
    """
    if layout.kind == "map":
        return shape[:2] if layout.channels_last else shape[1:]
    return shape[:1] if layout.kind == "tokens" else ()
