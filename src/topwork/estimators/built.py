"""A fitted plan as networks, and the scores it gives: what lies under an estimator's arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from topwork.data.augment import PLAIN
from topwork.estimators.inputs import require_all
from topwork.learn.loop import Inputs, TensorInputs
from topwork.learn.samples import Samples
from topwork.network.chain import CutPoint
from topwork.network.loading import Loaded, build_chain
from topwork.network.model import Model, Top, code_width
from topwork.network.zoo import Backbone
from topwork.plan import Plan
from topwork.trunk.execution import Execution
from topwork.trunk.extraction import LAYOUT, Extractor

AT_ONCE_CODES, AT_ONCE_MAPS = 256, 8
"""Images that go through the head, and through layers below it, together. Short batches are filled
up, so that a score depends on its image alone. Of few rows products may depend on the place of each
(8 rows, 3 classes, on one processor), and a head is so cheap that these may be many."""


@dataclass(frozen=True, eq=False)
class Built:
    """A fitted plan as networks.

    Attributes:
        loaded: the chain and the settled plan.
        top: the layers above ``frozen``, and the head.
        frozen: the lowest depth that a phase froze at.
        extractors: what runs the layers below, once it was needed.
    """

    loaded: Loaded
    top: Top
    frozen: CutPoint
    extractors: dict[Execution, Extractor] = field(default_factory=dict)


def build(backbone: Backbone, plan: Plan, frozen: str, tensors: dict[str, np.ndarray]) -> Built:
    """Return a fitted plan as networks, from what an estimator keeps of them.

    Args:
        backbone: what they are built from.
        plan: the settled plan.
        frozen: the lowest depth that a phase froze at.
        tensors: of all layers, by their names.
    """
    chain = build_chain(backbone.spec, backbone.preprocessing.size)
    pool = plan.pool or "flatten"
    outputs = len(tensors[f"{chain.head or 'head'}.bias"])
    width = code_width(chain, plan.codes, pool)
    model = Model(chain, plan.codes, pool, width, outputs, plan.added)
    state = {name: torch.tensor(value) for name, value in tensors.items()}
    model.load_layer_state(state, "the estimator")
    cut = chain.resolve(frozen)
    top = Top(chain, model.eval(), plan.codes, cut).eval()
    return Built(Loaded(backbone, chain, plan, None, None), top, cut)


@torch.no_grad()
def scores_of(built: Built, samples: Samples) -> np.ndarray:
    """Return the scores of images, float32 [n, classes], their frozen layers by way of the cache.

    Raises:
        ImageError: for an image that cannot be decoded.
    """
    count = len(samples.images)
    device = samples.execution.device
    top = built.top.to(device).to(memory_format=LAYOUT)
    if top.takes_map:
        require_all(samples.images, samples.unreadable(built.frozen, range(count)))
        codes = through(top.codes, samples.at(built.frozen, range(count)), AT_ONCE_MAPS)
    else:
        codes = codes_of(built, samples).to(device)
    return through(top.scores, TensorInputs(codes), AT_ONCE_CODES).float().cpu().numpy()


def through(layers: Callable[..., torch.Tensor], inputs: Inputs, size: int) -> torch.Tensor:
    """Return what layers make of all inputs, so many at once; the last are filled up."""
    count = len(inputs)
    parts = []
    for first in range(0, count, size):
        rows = [min(row, count - 1) for row in range(first, first + size)]
        parts.append(layers(*inputs.batch(rows, 0))[: count - first])
    return torch.cat(parts)


def codes_of(built: Built, samples: Samples) -> torch.Tensor:
    """Return all codes that a head on frozen layers reads, side by side, float32 [n, width]."""
    execution = samples.execution
    if execution not in built.extractors:
        built.extractors[execution] = samples.extractor(built.frozen)
    codes = samples.extract(built.extractors[execution], range(len(samples.images)), PLAIN)
    require_all(samples.images, codes.failed)
    return torch.from_numpy(codes.rows)
