"""Pooling to a grid: even cells, positions counted by their share."""

import numpy as np
import pytest
import torch

from topwork.network.grid import GridPool, grid_name, shares
from topwork.network.layout import Layout


@pytest.mark.parametrize(("height", "width", "rows", "columns"), [(7, 7, 3, 3), (6, 5, 4, 2)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_cells_are_means_of_a_finer_map(height, width, rows, columns, channels_last) -> None:
    maps = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    finer = maps.numpy().repeat(rows, 2).repeat(columns, 3)  # so that cells hold whole positions
    expected = [
        finer[:, :, r * height : (r + 1) * height, c * width : (c + 1) * width].mean((2, 3))
        for r in range(rows)
        for c in range(columns)
    ]
    given = maps.permute(0, 2, 3, 1) if channels_last else maps
    pool = GridPool(tuple(given.shape[1:]), Layout("map", channels_last), grid_name(rows, columns))
    found = pool(given)
    assert found.shape == (2, 3 * rows * columns)
    np.testing.assert_allclose(found.view(2, 3, -1), np.stack(expected, 2), atol=1e-6)
    torch.testing.assert_close(found.view(2, 3, -1).mean(2), maps.mean((2, 3)))


def test_a_grid_of_the_map_s_own_size_changes_nothing() -> None:
    torch.testing.assert_close(shares(5, 5), torch.eye(5))
