"""Hints: what a teacher's lower layers make of each part of an image, for a student's to learn.

Romero et al. 2015 ("FitNets: Hints for thin deep nets") let a layer in the middle of the student
learn what one in the middle of the teacher gives. Here the last maps of the coarsest resolution of
either network are a pair, then those of the next finer one, and of the next. So layers meet that
are as many halvings below the top, whatever the sizes of the images that the two are given. Both
maps are reduced to the means over the cells of a grid. What is where tells a student far more of
each image than the codes of the whole do, which counts where images are few.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

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
    """Return the pairs of maps of two networks, the lowest first; none if either has no maps.

    Args:
        student: its codes at L may be one.
        teacher: those at L are learned anyhow, so what lies right below them is.
    """
    found: list[Hint] = []
    for ours, others in zip(by_resolution(student), by_resolution(teacher), strict=False):
        below = [cut for cut in others if cut.depth < teacher.top.depth]
        if not below:
            continue
        own, theirs = ours[-1], below[-1]
        if found and (own.depth >= found[-1].own.depth or theirs.depth >= found[-1].theirs.depth):
            continue  # it grows finer again further up
        sides = [positions(cut.shape, cut.layout) for cut in (own, theirs)]
        rows, columns = (min(FINEST, *lengths) for lengths in zip(*sides, strict=True))
        found.append(Hint(own, theirs, rows, columns))
    return found[:PAIRS][::-1]


def by_resolution(chain: Chain) -> list[list[CutPoint]]:
    """Return the cut points with maps, those of a resolution together, the coarsest first."""
    found: dict[int, list[CutPoint]] = {}
    for cut in chain.cuts[1:]:
        if cut.layout.kind == "map" and (size := prod(positions(cut.shape, cut.layout))) > 1:
            found.setdefault(size, []).append(cut)
    return [found[size] for size in sorted(found)]


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
        read = self.reader(by_cell(self.pool(values), self.cells)).float()
        return (
            (read - (by_cell(wanted, self.cells) - self.mean) / self.deviation)
            .square()
            .mean((1, 2))
        )


def by_cell(pooled: Tensor, cells: int) -> Tensor:
    """Return a map that was pooled to a grid as [n, cells, channels]."""
    return pooled.unflatten(1, (-1, cells)).transpose(1, 2)
