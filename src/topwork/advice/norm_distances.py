"""The distance of the target from the source at a network's batch norms."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from topwork.advice.distances import CutDistance, Distances, frechet_distance
from topwork.data.decode import quiet
from topwork.data.image_set import ImageSet
from topwork.data.loading import map_ahead, read_view
from topwork.data.views import Preprocessing, to_tensor
from topwork.errors import ImageError
from topwork.learn.batch_norm import batch_norms
from topwork.network.chain import Chain
from topwork.network.cut import Trunk

Array = np.ndarray

MOST_IMAGES = 32  # 16 give nearly the same; see benchmarks/similarity.py
BATCH = 4


def batch_norm_distances(
    chain: Chain, pixels: Array, preprocessing: Preprocessing, reused: str | None = None
) -> Distances | None:
    """Compare what batch norms know of the source with what the target's images give there.

    One eager pass over modules of its own, in eval mode: nothing of the chain is written.

    Args:
        chain: the network.
        pixels: uint8 [N, H, W, C], rendered images of the target.
        preprocessing: what they were rendered by.
        reused: the depth up to which the weights are the source's, and no further; L by default.

    Returns:
        None if the network has no batch norms with statistics up to there, or no image is given.
    """
    uppermost = chain.top if reused is None else chain.resolve(reused)
    if uppermost.depth == 0:
        return None
    trunk = Trunk(chain, [cut.name for cut in chain.cuts[1 : uppermost.depth + 1]])
    norms = [
        (number, norm)
        for number, segment in enumerate(trunk.segments)
        for _, norm in batch_norms(segment)
    ]
    if not norms or len(pixels) == 0:
        return None
    noted: list[list[Sums]] = [[] for _ in norms]
    for (_, norm), own in zip(norms, noted, strict=True):
        norm.register_forward_pre_hook(_noting_into(own))  # of our own module, gone after this
    for start in range(0, len(pixels), BATCH):
        batch = to_tensor(pixels[start : start + BATCH], preprocessing)
        trunk(batch.to(chain.device, memory_format=torch.channels_last))
    by_cut: dict[int, list[float]] = {}
    for (number, norm), sums in zip(norms, noted, strict=True):
        if sums:
            by_cut.setdefault(number, []).append(_distance(norm, sums))
    depths = tuple(
        CutDistance(trunk.cuts[number].name, trunk.cuts[number].depth, float(np.mean(values)))
        for number, values in sorted(by_cut.items())
    )
    return Distances("batch norms", depths, len(pixels)) if depths else None


Sums = tuple[int, Array, Array]
"""Of a batch: how many values a channel has, their mean and the mean of their squares."""


def _noting_into(noted: list[Sums]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """Return a hook that notes what a module is given, [N, channels, ...]."""

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].float()
        others = [axis for axis in range(values.dim()) if axis != 1]
        sums = values.mean(others), values.square().mean(others)  # a third of var_mean's time
        mean, square = (found.cpu().double().numpy() for found in sums)
        noted.append((values.numel() // values.shape[1], mean, square))

    return note


def _distance(norm: nn.Module, sums: Sequence[Sums]) -> float:
    """Return the distance at one batch norm, given what went into it."""
    counts, means, squares = zip(*sums, strict=True)
    mean = np.average(means, axis=0, weights=counts)
    variance = np.maximum(np.average(squares, axis=0, weights=counts) - mean**2, 0.0)
    source_mean, source_variance = (
        getattr(norm, name).cpu().double().numpy() for name in ("running_mean", "running_var")
    )
    return frechet_distance(source_mean, source_variance, mean, variance)


def sample_pixels(images: ImageSet, indices: Sequence[int], preprocessing: Preprocessing) -> Array:
    """Render at most 32 of some images, evenly spread over them; unreadable ones are passed over.

    Returns:
        uint8 [N, H, W, C].
    """
    places = np.linspace(0, len(indices) - 1, min(len(indices), MOST_IMAGES)).round().astype(int)
    chosen = [indices[place] for place in places]
    with quiet():
        found = map_ahead(chosen, lambda index: read_view(images, index, None, preprocessing))
        rendered = [pixels for _, pixels in found if not isinstance(pixels, ImageError)]
    empty = np.zeros((0, *preprocessing.size, preprocessing.channels), np.uint8)
    return np.stack(rendered) if rendered else empty
