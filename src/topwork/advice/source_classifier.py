"""What the source's own classifier says about the target's images."""

from __future__ import annotations

import numpy as np

from topwork.network.answers import softmax
from topwork.network.codes import source_pool
from topwork.network.loading import Loaded
from topwork.network.state import read_state
from topwork.network.weights import match_names
from topwork.plan import Plan

Array = np.ndarray


def source_probabilities(loaded: Loaded, codes: Array, pool: str) -> Array | None:
    """Return the probabilities that the source's classifier gives the source's classes.

    Args:
        loaded: the backbone, its pretrained weights reused up to L.
        codes: [n, d] float32, pooled at L.
        pool: how. Where that puts token and mean side by side, the half that the source's head
            reads is taken.

    Returns:
        float64 [n, source classes]; None where they cannot be had: the weights file holds no
        classifier (a fitted model's head may tell labels or numbers), it is no single linear
        layer, or it reads other codes than these.

    Raises:
        WeightsError: if the weights file cannot be read any more.
    """
    chain, fitted = loaded.chain, loaded.backbone.fitted
    if fitted is not None and not _classifies_at(chain.top.name, fitted):
        return None
    own_pool = source_pool(chain) if fitted is None else fitted.pool
    read = _part_read(np.asarray(codes), pool, own_pool)
    if read is None or loaded.weights is None or loaded.plan.reused != chain.top.name:
        return None
    state = match_names(read_state(loaded.weights["file"]), chain.network.state_dict()).state
    weight, bias = (state.get(f"{chain.head}.{name}") for name in ("weight", "bias"))
    if weight is None or weight.shape[1:].numel() != read.shape[1]:
        return None
    scores = read @ weight.flatten(1).numpy().T
    return softmax(scores if bias is None else scores + bias.numpy())


def _classifies_at(depth: str, fitted: Plan) -> bool:
    """Say whether a model's head tells classes apart by the codes of this depth as they are."""
    tells_classes = fitted.head not in ("sigmoid", "regression")
    return tells_classes and not fitted.added and fitted.codes == (depth,)


def _part_read(codes: Array, pool: str, own: str | None) -> Array | None:
    """Return the columns of codes at L that the source's head reads; None if it reads others."""
    if pool == own:
        return codes
    if pool == "token+avg" and own in ("token", "avg"):
        half = codes.shape[1] // 2
        return codes[:, :half] if own == "token" else codes[:, half:]
    return None
