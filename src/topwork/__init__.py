"""Transfer learning by measurement: keep the trunk of a pretrained network, work on the top.

Names are imported when they are first used, so that ``import topwork`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from topwork.advising import advise, profile
    from topwork.api import fit
    from topwork.data.items import images_from_arrays, open_images
    from topwork.errors import TopworkError
    from topwork.estimators.classifier import TransferClassifier
    from topwork.estimators.frozen import FrozenFeatures
    from topwork.making import pretrain
    from topwork.network.chain import Chain, trace_chain
    from topwork.network.cut import cut
    from topwork.network.predictor import load
    from topwork.phase import Phase, Stop
    from topwork.plan import Augment, Hidden, Plan
    from topwork.scoring import evaluate_model
    from topwork.showing import inspect

_HOME = {
    "Augment": "plan",
    "Chain": "network.chain",
    "FrozenFeatures": "estimators.frozen",
    "Hidden": "plan",
    "Phase": "phase",
    "Plan": "plan",
    "Stop": "phase",
    "TopworkError": "errors",
    "TransferClassifier": "estimators.classifier",
    "advise": "advising",
    "cut": "network.cut",
    "evaluate_model": "scoring",
    "fit": "api",
    "images_from_arrays": "data.items",
    "inspect": "showing",
    "load": "network.predictor",
    "open_images": "data.items",
    "pretrain": "making",
    "profile": "advising",
    "trace_chain": "network.chain",
}

__all__ = [
    "Augment",
    "Chain",
    "FrozenFeatures",
    "Hidden",
    "Phase",
    "Plan",
    "Stop",
    "TopworkError",
    "TransferClassifier",
    "advise",
    "cut",
    "evaluate_model",
    "fit",
    "images_from_arrays",
    "inspect",
    "load",
    "open_images",
    "pretrain",
    "profile",
    "trace_chain",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"topwork.{_HOME[name]}"), name)
    raise AttributeError(f"module 'topwork' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
