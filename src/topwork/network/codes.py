"""Codes: how the tensor at a cut point becomes the vector that a linear head reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from topwork.errors import ChainError
from topwork.network.chain import Chain, CutPoint
from topwork.network.cut import codes_segment
from topwork.network.grid import GRID, GridPool
from topwork.network.layout import Layout


class Pool(nn.Module):
    """Pooling of a tensor of a known layout to vectors, [N, ...] to [N, D].

    * avg: the mean over positions; of tokens, over those that stand for a position.
    * token: the first token.
    * token+avg: both side by side.
    * flatten: everything as it stands.

    A vector is passed on as it is by each of them.
    """

    def __init__(self, layout: Layout, how: str) -> None:
        super().__init__()
        self.layout, self.how = layout, how

    def forward(self, x: Tensor) -> Tensor:
        """Pool [N, ...] to [N, D]."""
        layout = self.layout
        if layout.kind == "vector":
            return x
        if self.how == "flatten":
            return x.flatten(1)
        if layout.kind == "map":
            return x.mean((1, 2) if layout.channels_last else (2, 3))
        token, mean = x[:, 0], x[:, layout.prefix :].mean(1)
        if self.how == "token+avg":
            return torch.cat((token, mean), 1)
        return token if self.how == "token" else mean


def possible_pools(layout: Layout) -> tuple[str, ...]:
    """Return the poolings that make sense for a layout, the most usual first.

    >>> possible_pools(Layout("map")), possible_pools(Layout("tokens", prefix=1))
    (('avg', 'flatten'), ('token', 'avg', 'token+avg', 'flatten'))
    """
    if layout.kind == "vector":
        return ("flatten", "avg", "token", "token+avg")
    if layout.kind == "map":
        return ("avg", "flatten")
    if layout.kind == "tokens":
        return ("token", "avg", "token+avg", "flatten") if layout.prefix else ("avg", "flatten")
    return ("flatten",)


def source_pool(chain: Chain) -> str | None:
    """Return the pooling between L and the source's own head; None if it is none of ours."""
    part = codes_segment(chain)
    if part is None:
        return None
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, *chain.top.shape, generator=generator).to(chain.device)
    with torch.no_grad():
        expected = part.eval()(sample.clone())
        for how in possible_pools(chain.top.layout):
            got = Pool(chain.top.layout, how)(sample)
            if got.shape == expected.shape and torch.allclose(got, expected, atol=1e-5):
                return how
    return None


def choose_pool(chain: Chain, cuts: list[CutPoint], asked: str | None) -> str:
    """Return the pooling for codes at some cut points: the one asked for, or the default.

    The default is what the source's own head uses, where the layouts of the cuts allow it.

    Raises:
        ChainError: if the pooling asked for makes no sense at one of the cuts.
    """
    if asked is not None:
        for cut in cuts:
            possible = possible_pools(cut.layout)
            if asked not in possible:
                raise ChainError(
                    f"pool {asked!r} makes no sense at {cut.name}, which is a {cut.layout};"
                    f" possible there: {', '.join(possible)}"
                )
        return asked
    own = source_pool(chain)
    for how in (own, *possible_pools(cuts[-1].layout)):
        if how and all(how in possible_pools(cut.layout) for cut in cuts):
            if how == "flatten" and any(cut.layout.kind == "map" for cut in cuts):
                continue  # a map flattened is far larger than what any head of a source reads
            return how
    return "flatten"


def pool_module(chain: Chain, cut: CutPoint, how: str) -> nn.Module:
    """Return the module that pools a cut's tensor.

    At L, and with the source's own pooling, it is the source's own code, so that a model built
    from it gives the bits that the source network would. Beside the poolings of plans it knows
    those to a grid, see `topwork.network.grid`.
    """
    if how.startswith(GRID):
        return GridPool(cut.shape, cut.layout, how)
    if cut is chain.top and how == source_pool(chain):
        part = codes_segment(chain)
        if part is not None:
            return part.eval()
    return Pool(cut.layout, how)
