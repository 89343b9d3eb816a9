"""The backbone folder: what pretraining makes and ``--backbone FOLDER`` takes.

``backbone.json`` holds the architecture, the preprocessing and a card that says what the weights
were made from; ``model.safetensors`` the weights. A timm architecture of three channels gets timm's
``config.json`` too, so that the same folder opens with timm, unless upper layers are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from topwork.errors import WeightsError
from topwork.network.chain import CutPoint
from topwork.network.folder import TIMM, WEIGHTS, timm_config
from topwork.network.inputs import COLORS
from topwork.network.loading import Loaded, sha256
from topwork.network.zoo import BACKBONE_FACTS, BACKBONE_FORMAT, OF_PUBLISHED_WEIGHTS


def save_backbone(
    folder: Path,
    loaded: Loaded,
    card: Mapping[str, Any],
    *,
    classifier: bool,
    up_to: CutPoint | None = None,
    labels: tuple[str, ...] = (),
    half: bool = False,
) -> None:
    """Write a backbone folder; the folder must not exist yet.

    Args:
        folder: where.
        loaded: the network, whose weights are to be reused up to L.
        card: what is known of them, JSON-able; ``license`` and ``source`` among it.
        classifier: whether the network's own classifier was trained; if not, it is left out, so
            that nobody takes what it says for the source's classes.
        up_to: what lies above it is left out too; None for L.
        labels: what these are called, where that is known.
        half: whether to keep matrices and kernels in half precision; vectors, such as a batch
            norm's statistics, are few and stay as they are.

    Raises:
        WeightsError: if half precision cannot hold a weight.
    """
    folder.mkdir(parents=True)
    highest = (up_to or loaded.chain.top).depth
    depth_of = loaded.chain.depth_of_state()
    state = {
        name: (halved(name, value) if half else value).contiguous()
        for name, value in loaded.chain.network.state_dict().items()
        if classifier or depth_of[name] <= highest
    }
    safetensors.torch.save_file(state, folder / WEIGHTS, {"format": "pt"})
    facts = {
        "format": BACKBONE_FORMAT,
        "topwork": version("topwork"),
        "backbone": loaded.backbone.spec.to_dict(),
        "preprocessing": loaded.backbone.preprocessing.to_dict(),
        "weights_sha256": sha256(folder / WEIGHTS),
        "labels": list(labels),
        "card": dict(card),
    }
    (folder / BACKBONE_FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    spec = loaded.backbone.spec
    whole = highest == loaded.chain.top.depth
    if spec.library == "timm" and spec.channels == COLORS and whole:
        config = timm_config(loaded, labels)
        facts_of_ours = config["pretrained_cfg"]
        for key in OF_PUBLISHED_WEIGHTS:
            facts_of_ours.pop(key, None)
        if not classifier:
            config["num_classes"] = config["pretrained_cfg"]["num_classes"] = 0
        (folder / TIMM).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def halved(name: str, value: Tensor) -> Tensor:
    """Return a matrix or kernel in half precision, anything else as it is."""
    if value.ndim < 2 or not value.is_floating_point():
        return value
    rounded = value.half()
    if not rounded.isfinite().all():
        raise WeightsError(
            f"{name} holds values that half precision cannot; give --resume without --half"
        )
    return rounded
