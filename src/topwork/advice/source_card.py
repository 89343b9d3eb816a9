"""A card beside a backbone's weights: the mean and spread of the source's codes at each cut point.

``source_statistics.safetensors`` holds for each cut point the tensors ``NAME.mean`` and
``NAME.std``, float32 [d], of codes pooled as its header says. With it a network without batch
norms knows its source too. The header also says of which weights it tells, by their SHA-256: other
files may lie in the same folder. The file is read as tensors and text; nothing of it is run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from topwork.advice.distances import CutDistance, Distances, frechet_distance
from topwork.errors import WeightsError
from topwork.network.chain import Chain
from topwork.network.loading import Loaded

Array = np.ndarray

log = logging.getLogger("topwork")

CARD = "source_statistics.safetensors"
FORMAT = "topwork source statistics 1"


@dataclass(frozen=True, eq=False)
class CutStatistics:
    """Of the source's codes at one cut point.

    Attributes:
        mean: float32 [d].
        std: float32 [d], not negative.
        pool: how the codes were pooled.
    """

    mean: Array
    std: Array
    pool: str


@dataclass(frozen=True, eq=False)
class Card:
    """What is known of a backbone's source.

    Attributes:
        images: of the source that were looked at.
        cuts: their statistics, by the name of the cut point.
        weights: SHA-256 of the file with the weights that gave the codes; None until it is written.
    """

    images: int
    cuts: dict[str, CutStatistics]
    weights: str | None = None


def statistics_of(codes: Mapping[str, Array], pools: Mapping[str, str]) -> Card:
    """Return the card for a source, from codes of its images.

    Args:
        codes: [n, d] floats by the name of the cut point; n is the same for all.
        pools: how they were pooled, by the same names.

    >>> card = statistics_of({"body": np.float32([[1.0], [3.0]])}, {"body": "avg"})
    >>> card.cuts["body"].mean.tolist(), card.cuts["body"].std.tolist(), card.images
    ([2.0], [1.0], 2)
    """
    cuts = {}
    for name, values in codes.items():
        mean = np.asarray(values.mean(axis=0, dtype=np.float64), dtype=np.float32)
        std = np.asarray(values.std(axis=0, dtype=np.float64), dtype=np.float32)
        cuts[name] = CutStatistics(mean, std, pools[name])
    return Card(len(next(iter(codes.values()))), cuts)


def write_card(loaded: Loaded, card: Card) -> Path:
    """Write a card beside the weights whose codes it tells of, and return its path.

    Raises:
        WeightsError: if the network has random weights.
    """
    if loaded.weights is None:
        raise WeightsError(
            f"{loaded.backbone.name}: a card tells of pretrained weights, and these are random;"
            " give a plan that reuses layers"
        )
    tensors: dict[str, Array] = {}
    for name, found in card.cuts.items():
        tensors |= {f"{name}.mean": found.mean, f"{name}.std": found.std}
    pools = json.dumps({name: found.pool for name, found in card.cuts.items()})
    facts = {"format": FORMAT, "images": str(card.images), "pools": pools}
    path = Path(loaded.weights["file"]).parent / CARD
    save_file(tensors, path, metadata=facts | {"weights": loaded.weights["sha256"]})
    return path


def read_card(path: Path) -> Card:
    """Read a card.

    Raises:
        WeightsError: if the file is absent, damaged, or no card.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if facts.get("format") != FORMAT:
            raise ValueError
        pools: dict[str, Any] = json.loads(facts["pools"])
        cuts = {
            name: CutStatistics(tensors.pop(f"{name}.mean"), tensors.pop(f"{name}.std"), str(pool))
            for name, pool in pools.items()
        }
        images, weights = int(facts["images"]), facts["weights"]
    except (SafetensorError, OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise WeightsError(
            f"{path}: is no card of source statistics, or is damaged; remove it, or fetch it again"
        ) from error
    for name, found in cuts.items():
        both = found.mean, found.std
        if found.mean.ndim != 1 or found.mean.shape != found.std.shape:
            raise WeightsError(f"{path}: mean and std of {name} do not fit; fetch it again")
        if not all(np.isfinite(values).all() for values in both) or found.std.min(initial=0) < 0:
            raise WeightsError(f"{path}: {name} holds impossible numbers; fetch it again")
    if tensors:
        raise WeightsError(f"{path}: {min(tensors)!r} belongs to no cut point; fetch it again")
    return Card(images, cuts, weights)


def card_of(loaded: Loaded) -> Card | None:
    """Return the card of a backbone's weights, which lies beside them; None if there is none.

    A card of other weights is passed over, with a line in the log.

    Raises:
        WeightsError: if there is one that cannot be read.
    """
    if loaded.weights is None:
        return None
    path = Path(loaded.weights["file"]).parent / CARD
    if not path.is_file():
        return None
    card = read_card(path)
    if card.weights != loaded.weights["sha256"]:
        log.warning("%s tells of other weights than %s; left out", path, loaded.weights["file"])
        return None
    return card


def card_distances(
    card: Card, chain: Chain, codes: Mapping[str, Array], pools: Mapping[str, str]
) -> Distances | None:
    """Compare the source's codes with the target's, at every cut point that both have.

    Args:
        card: of the source.
        chain: the network.
        codes: of the target's images, [n, d] floats by the name of the cut point.
        pools: how they were pooled; where the card's were pooled otherwise, the cut is left out.

    Returns:
        None if no cut point can be compared.
    """
    depths = []
    for cut in chain.cuts:
        known, own = card.cuts.get(cut.name), codes.get(cut.name)
        if known is None or own is None or known.pool != pools[cut.name]:
            continue
        if own.shape[1:] != known.mean.shape:
            continue
        mean, variance = own.mean(axis=0, dtype=np.float64), own.var(axis=0, dtype=np.float64)
        source = known.mean.astype(np.float64), np.square(known.std, dtype=np.float64)
        depths.append(CutDistance(cut.name, cut.depth, frechet_distance(*source, mean, variance)))
    if not depths:
        return None
    return Distances("card", tuple(depths), len(next(iter(codes.values()))))
