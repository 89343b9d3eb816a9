"""Hints: what a teacher's lower layers make of each part of an image, for a student's to learn.

Romero et al. 2015 ("FitNets: Hints for thin deep nets") let a layer in the middle of the student
learn what one in the middle of the teacher gives. Here there is a pair for each of the three
coarsest resolutions that both have: of the maps with one position for so many pixels of the image
the last of either network. Both are reduced to the means over the cells of a grid. What is where
tells a student far more of each image than the codes of the whole do, which counts where images
are few.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from topwork.learn.objective import Scale
from topwork.network.chain import Chain, CutPoint
from topwork.network.grid import GridPool, grid_name
from topwork.network.layout import positions

PAIRS = 3
"""Of maps, at most: of finer ones a cell's mean is little more than its color."""
FINEST = 6
"""Cells of a grid to a side, at most: what is kept of each view grows with their square."""


@dataclass(frozen=True)
class Hint:
    """A pair of maps.

    Attributes:
        own: where the student's is.
        theirs: where the teacher's is.
        rows: of the grid.
        columns: of the grid.
    """

    own: CutPoint
    theirs: CutPoint
    rows: int
    columns: int

    @property
    def pool(self) -> str:
        """The name of the pooling to the grid."""
        return grid_name(self.rows, self.columns)


def hints_between(student: Chain, teacher: Chain) -> list[Hint]:
    """Return the pairs of maps of two networks, the lowest first; none if no maps are alike.

    Args:
        student: its codes at L may be one.
        teacher: those at L are learned anyhow.
    """
    own, theirs = last_maps(student.cuts), last_maps(teacher.cuts[:-1])
    found = []
    for stride in sorted(own.keys() & theirs.keys()):
        sides = [positions(cut.shape, cut.layout) for cut in (own[stride], theirs[stride])]
        rows, columns = (min(FINEST, *lengths) for lengths in zip(*sides, strict=True))
        found.append(Hint(own[stride], theirs[stride], rows, columns))
    return found[-PAIRS:]


def last_maps(cuts: tuple[CutPoint, ...]) -> dict[int, CutPoint]:
    """Return the last map of each resolution, by how many pixels a position stands for."""
    height = cuts[0].shape[1]
    return {
        round(height / positions(cut.shape, cut.layout)[0]): cut
        for cut in cuts[1:]
        if cut.layout.kind == "map"
    }


class HintReader(nn.Module):
    """Reads a teacher's map off the student's, each position by the same linear layer.

    Args:
        hint: which maps.
        scale: of the teacher's channels.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, hint: Hint, scale: Scale) -> None:
        super().__init__()
        self.pool = GridPool(hint.own.shape, hint.own.layout, hint.pool)
        self.cells = hint.rows * hint.columns
        channels = hint.own.shape[-1 if hint.own.layout.channels_last else 0]
        self.reader = nn.Linear(channels, len(scale.mean))
        self.register_buffer("mean", scale.mean)
        self.register_buffer("deviation", scale.deviation)

    def forward(self, values: Tensor, wanted: Tensor) -> Tensor:
        """Return the squared error of each image, mean over cells and channels, [n].

        Args:
            values: the student's map.
            wanted: the teacher's, pooled to the grid, [n, channels * cells].
        """
        read = self.reader(by_cell(self.pool(values.float()), self.cells)).float()
        return (
            (read - (by_cell(wanted, self.cells) - self.mean) / self.deviation)
            .square()
            .mean((1, 2))
        )


def by_cell(pooled: Tensor, cells: int) -> Tensor:
    """Return a map that was pooled to a grid as [n, cells, channels]."""
    return pooled.unflatten(1, (-1, cells)).transpose(1, 2)
