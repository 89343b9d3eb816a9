"""A model: the kept layers of a network, pooled codes, and a linear head on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from topwork.errors import ModelError
from topwork.network.chain import Chain
from topwork.network.codes import pool_module
from topwork.network.cut import segment


class Model(nn.Module):
    """Images in, scores out: float32 [N, 3, H, W], normalized, to [N, classes].

    Its entries in `layer_state` have the names that they have in the source network, the head's
    included.
    """

    def __init__(
        self, chain: Chain, codes: Sequence[str], pool: str, width: int, outputs: int
    ) -> None:
        super().__init__()
        cuts = sorted((chain.resolve(name) for name in codes), key=lambda cut: cut.depth)
        starts = [chain.cuts[0], *cuts]
        self.segments = nn.ModuleList(
            segment(chain, below, above) for below, above in zip(starts, cuts, strict=False)
        )
        self.pools = nn.ModuleList(pool_module(chain, cut, pool) for cut in cuts)
        self.head = nn.Linear(width, outputs)
        self.head_name = chain.head or "head"

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores of a batch."""
        parts, value = [], images
        for part, pool in zip(self.segments, self.pools, strict=True):
            value = part(value)
            parts.append(pool(value))
        return self.head(parts[0] if len(parts) == 1 else torch.cat(parts, 1))

    def layer_state(self) -> dict[str, Tensor]:
        """Return all tensors by the names they have in the source network."""
        state = {k: v for part in self.segments for k, v in part.state_dict().items()}
        head = {f"{self.head_name}.{k}": v for k, v in self.head.state_dict().items()}
        return state | head

    def load_layer_state(self, state: Mapping[str, Tensor], file: str) -> None:
        """Copy tensors in, by the names of `layer_state`; all must match.

        Raises:
            ModelError: naming what is missing, left over, or of another shape.
        """
        own = self.layer_state()
        missing, left_over = own.keys() - state.keys(), state.keys() - own.keys()
        for names, what in ((missing, "lacks"), (left_over, "holds, beyond the model,")):
            if names:
                raise ModelError(
                    f"{file} {what} {len(names)} tensors, the first {min(names)!r};"
                    " it does not belong to the topwork.json beside it"
                )
        with torch.no_grad():
            for name, value in own.items():
                if value.shape != state[name].shape:
                    raise ModelError(
                        f"{file}: {name} has shape {tuple(state[name].shape)}, the model needs"
                        f" {tuple(value.shape)}; it does not belong to the topwork.json beside it"
                    )
                value.copy_(state[name])


def code_width(chain: Chain, codes: Sequence[str], pool: str) -> int:
    """Return the length of the vector that a head on these codes reads."""
    width = 0
    for name in codes:
        cut = chain.resolve(name)
        with torch.no_grad():
            width += pool_module(chain, cut, pool)(torch.zeros(1, *cut.shape)).shape[1]
    return width
