"""A model: the kept layers of a network, pooled codes, added layers, and a linear head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from topwork.errors import ModelError
from topwork.network.chain import Chain, CutPoint
from topwork.network.codes import pool_module
from topwork.network.cut import segment
from topwork.plan import Hidden

ADDED, HEAD = "added", "head"
"""How a model calls what its network has not: added layers, and a head where it has none."""
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class Model(nn.Module):
    """Images in, scores out: float32 [N, 3, H, W], normalized, to [N, classes].

    Its entries in `layer_state` have the names that they have in the source network, the head's
    included; added layers are called ``added``.

    Args:
        chain: the network.
        codes: the depths whose pooled tensors are read, side by side.
        pool: how they are pooled.
        width: the length of all codes together.
        outputs: rows of the head.
        added: hidden layers between codes and head.
    """

    def __init__(
        self,
        chain: Chain,
        codes: Sequence[str],
        pool: str,
        width: int,
        outputs: int,
        added: Sequence[Hidden] = (),
    ) -> None:
        super().__init__()
        cuts = sorted((chain.resolve(name) for name in codes), key=lambda cut: cut.depth)
        starts = [chain.cuts[0], *cuts]
        self.segments = nn.ModuleList(
            segment(chain, below, above) for below, above in zip(starts, cuts, strict=False)
        )
        self.pools = nn.ModuleList(pool_module(chain, cut, pool) for cut in cuts)
        self.added = hidden_layers(width, added)
        self.head = nn.Linear(added[-1].width if added else width, outputs)
        self.head_name = chain.head or HEAD

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores of a batch."""
        parts, value = [], images
        for part, pool in zip(self.segments, self.pools, strict=True):
            value = part(value)
            parts.append(pool(value))
        return self.head(self.added(parts[0] if len(parts) == 1 else torch.cat(parts, 1)))

    def layer_state(self) -> dict[str, Tensor]:
        """Return all tensors by the names they have in the source network."""
        state = {k: v for part in self.segments for k, v in part.state_dict().items()}
        added = {f"{ADDED}.{k}": v for k, v in self.added.state_dict().items()}
        head = {f"{self.head_name}.{k}": v for k, v in self.head.state_dict().items()}
        return state | added | head

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


class Top(nn.Module):
    """The layers of a model above a cut: what is trained while those below are frozen.

    It shares tensors, added layers and head with the model. Its inputs are the tensor that
    crosses the cut, where a code lies above it, then the pooled codes from below the cut or at
    it, side by side.

    Args:
        chain: the network.
        model: made from the same chain.
        codes: the depths that the model reads.
        frozen: the cut.
    """

    def __init__(self, chain: Chain, model: Model, codes: Sequence[str], frozen: CutPoint) -> None:
        super().__init__()
        cuts = sorted((chain.resolve(name) for name in codes), key=lambda cut: cut.depth)
        above = [cut for cut in cuts if cut.depth > frozen.depth]
        starts = [frozen, *above]
        self.takes_map, self.codes_read = bool(above), len(cuts)
        self.segments = nn.ModuleList(
            segment(chain, below, cut) for below, cut in zip(starts, above, strict=False)
        )
        self.pools = nn.ModuleList(list(model.pools)[len(cuts) - len(above) :])
        self.added, self.head = model.added, model.head
        self.head_name = model.head_name

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the scores of a batch."""
        return self.scores(self.codes(*inputs))

    def codes(self, *inputs: Tensor) -> Tensor:
        """Return all codes that the head reads, side by side, [N, D]."""
        codes = list(inputs[1:] if self.takes_map else inputs)
        value = inputs[0]
        for part, pool in zip(self.segments, self.pools, strict=True):
            value = part(value)
            codes.append(pool(value))
        return codes[0] if len(codes) == 1 else torch.cat(codes, 1)

    def scores(self, codes: Tensor) -> Tensor:
        """Return what added layers and head make of codes."""
        scores: Tensor = self.head(self.added(codes))
        return scores

    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield all modules by the names they have in the source network, and the added ones."""
        for part in self.segments:
            yield from ((name, module) for name, module in part.named_modules() if name)
        yield from self.added.named_modules(prefix=ADDED)
        yield self.head_name, self.head

    def layer_parameters(self) -> dict[str, nn.Parameter]:
        """Return all parameters by the names they have in `Model.layer_state`."""
        own = {name: p for part in self.segments for name, p in part.named_parameters()}
        own |= {f"{ADDED}.{name}": p for name, p in self.added.named_parameters()}
        return own | {f"{self.head_name}.{name}": p for name, p in self.head.named_parameters()}


def hidden_layers(width: int, added: Sequence[Hidden]) -> nn.Sequential:
    """Return added layers on codes of a width: linear, norm, activation, dropout, each in turn.

    >>> hidden_layers(8, [Hidden(4, dropout=0.5)])
    Sequential(
      (0): Linear(in_features=8, out_features=4, bias=True)
      (1): ReLU()
      (2): Dropout(p=0.5, inplace=False)
    )
    """
    layers: list[nn.Module] = []
    for hidden in added:
        layers.append(nn.Linear(width, hidden.width))
        width = hidden.width
        if hidden.norm == "batch":
            layers.append(nn.BatchNorm1d(width))
        if hidden.norm == "layer":
            layers.append(nn.LayerNorm(width))
        layers.append(ACTIVATIONS[hidden.activation]())
        if hidden.dropout:
            layers.append(nn.Dropout(hidden.dropout))
    return nn.Sequential(*layers)


def code_width(chain: Chain, codes: Sequence[str], pool: str) -> int:
    """Return the length of the vector that a head on these codes reads."""
    width = 0
    for name in codes:
        cut = chain.resolve(name)
        with torch.no_grad():
            example = torch.zeros(1, *cut.shape, device=chain.device)
            width += pool_module(chain, cut, pool)(example).shape[1]
    return width
