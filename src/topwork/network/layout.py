"""How the tensor at a cut point is laid out: a map of channels, tokens, or a vector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import nn

Kind = Literal["map", "tokens", "vector", "other"]


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


def layout_of(shape: tuple[int, ...], network: nn.Module) -> Layout:
    """Tell the layout of one image's tensor from its shape.

    Inputs are taken to be about square: of a map's three dimensions the two that are alike are
    positions. Prefix tokens are what the network says, else what exceeds a square number.

    >>> layout_of((64, 7, 7), nn.Identity()), layout_of((7, 7, 64), nn.Identity()).channels_last
    (Layout(kind='map', channels_last=False, prefix=0), True)
    >>> layout_of((197, 192), nn.Identity())
    Layout(kind='tokens', channels_last=False, prefix=1)
    """
    if len(shape) == 1:
        return Layout("vector")
    if len(shape) == 2:
        declared = getattr(network, "num_prefix_tokens", None)
        square = math.isqrt(shape[0]) ** 2
        return Layout("tokens", prefix=declared if isinstance(declared, int) else shape[0] - square)
    if len(shape) == 3:
        return Layout("map", channels_last=shape[0] == shape[1] != shape[2])
    return Layout("other")


def positions(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """Return the part of a shape that is positions rather than channels.

    >>> positions((64, 7, 7), Layout("map")), positions((512,), Layout("vector"))
    ((7, 7), ())
    """
    if layout.kind == "map":
        return shape[:2] if layout.channels_last else shape[1:]
    return shape[:1] if layout.kind == "tokens" else ()
