"""What a network becomes above its map when it is slid: layers that act on every window of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Form:
    """What a value of the network is in the sliding network.

    Attributes:
        kind: "map": larger on larger images. In the others each position stands for a window:
            "pooled" was [N, C, 1, 1] and is [N, C, h, w]; "flat" was [N, D].
        window: height and width of the map that "flat" flattened and that is still to be
            gathered: it is [N, C, H, W] with D = C * height * width; (1, 1) once it is.
    """

    kind: Literal["map", "pooled", "flat"]
    window: tuple[int, int] = (1, 1)

    def corners(self, values: Tensor) -> list[Tensor]:
        """Return what the network would see in the four corner windows of [N, C, H, W]."""
        height, width = self.window
        bottom, right = values.shape[2] - height, values.shape[3] - width
        windows = [
            values[:, :, top : top + height, left : left + width]
            for top in (0, bottom)
            for left in (0, right)
        ]
        return [window.flatten(1) for window in windows] if self.kind == "flat" else windows


class PerWindow(nn.Module):
    """Applies a layer for vectors, such as a norm, at every position of [N, D, h, w]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, columns: Tensor) -> Tensor:
        """Return [N, D', h, w]."""
        rows = columns.movedim(1, -1)
        return self.layer(rows.flatten(0, 2)).unflatten(0, rows.shape[:3]).movedim(-1, 1)


def side_by_side(columns: Sequence[Tensor], steps: Sequence[tuple[int, int]]) -> Tensor:
    """Join columns [N, D, h, w] of several depths.

    Of each, every step-th position is taken, and as many as all of them have.
    """
    thinned = [
        column[:, :, ::down, ::across]
        for column, (down, across) in zip(columns, steps, strict=True)
    ]
    height = min(column.shape[2] for column in thinned)
    width = min(column.shape[3] for column in thinned)
    return torch.cat([column[:, :, :height, :width] for column in thinned], 1)


def convolution(linear: nn.Linear, window: tuple[int, int]) -> nn.Conv2d:
    """Return a linear layer on flattened windows as a convolution that shares its tensors.

    >>> convolution(nn.Linear(18, 5), (3, 3))
    Conv2d(2, 5, kernel_size=(3, 3), stride=(1, 1))
    """
    depth = linear.in_features // (window[0] * window[1])
    outputs, has_bias = linear.out_features, linear.bias is not None
    layer = nn.Conv2d(depth, outputs, window, bias=has_bias, device="meta")
    kernel = linear.weight.detach().view(outputs, depth, *window)
    layer.weight = nn.Parameter(kernel, requires_grad=linear.weight.requires_grad)
    layer.bias = linear.bias
    return layer
