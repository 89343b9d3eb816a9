"""A map's means over the cells of a grid: coarser than the map, and still saying what is where."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from topwork.network.layout import Layout, positions

GRID = "grid"


def grid_name(rows: int, columns: int) -> str:
    """Return the name of the pooling of maps to a grid.

    >>> grid_name(4, 4)
    'grid 4x4'
    """
    return f"{GRID} {rows}x{columns}"


class GridPool(nn.Module):
    """Pooling of a map to the means over a grid's cells, [N, C, H, W] to [N, C * rows * columns].

    Cells divide the map evenly; a position that lies in two counts for each by its share. So the
    mean over the cells is the mean over the map.

    Args:
        shape: of one image's map.
        layout: of it.
        how: as `grid_name` gives it.
    """

    down: Tensor
    across: Tensor

    def __init__(self, shape: tuple[int, ...], layout: Layout, how: str) -> None:
        super().__init__()
        rows, columns = (int(count) for count in how.removeprefix(GRID).split("x"))
        height, width = positions(shape, layout)
        self.channels_last = layout.channels_last
        self.register_buffer("down", shares(height, rows), persistent=False)
        self.register_buffer("across", shares(width, columns).T.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the means, of a channel all cells in a row."""
        if self.channels_last:
            x = x.permute(0, 3, 1, 2)
        return (self.down @ x @ self.across).flatten(1)


def shares(length: int, parts: int) -> Tensor:
    """Return by how much each position of a line counts in each of its even parts.

    Returns:
        float32 [parts, length], rows that sum to 1.

    >>> shares(3, 2)
    tensor([[0.6667, 0.3333, 0.0000],
            [0.0000, 0.3333, 0.6667]])
    """
    ends = torch.arange(1, parts + 1)[:, None] * (length / parts)
    place = torch.arange(length)
    overlap = torch.minimum(ends, place + 1) - torch.maximum(ends - length / parts, place)
    return overlap.clamp(min=0) * (parts / length)
