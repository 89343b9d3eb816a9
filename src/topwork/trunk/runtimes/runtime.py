"""What a runtime is: a way of running the layers of a trunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Run = Callable[[np.ndarray], list[np.ndarray]]
"""A trunk made ready: from pixels, uint8 [B, H, W, C] with B the runtime's batch, to each output,
float32 [B, ...] and contiguous. Any number of threads may call it at once."""


@dataclass(frozen=True)
class Runtime:
    """A way of running a trunk.

    Attributes:
        name: "eager", "half", "compile", "onnxruntime" or "openvino".
        device: where.
        batch: images at a time, always as many.
        version: of the package that runs it; "" for torch, whose version is among the facts anyway.
    """

    name: str
    device: torch.device
    batch: int
    version: str = ""

    def facts(self) -> dict[str, Any]:
        """Return what of it may change a bit of a code."""
        facts = {"name": self.name, "device": self.device.type, "layout": "channels_last"}
        return facts | ({"version": self.version} if self.version else {})
