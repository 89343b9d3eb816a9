"""How frozen layers are run on this machine. Nothing of it changes what a plan means."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from topwork.data.rendering import DECODINGS
from topwork.errors import UsageError, did_you_mean

RUNTIMES = ("auto", "eager", "compile", "onnxruntime", "openvino", "half")
CACHES = ("auto", "float32", "float16", "off")
VERIFICATIONS = ("once", "always")


@dataclass(frozen=True)
class Execution:
    """How frozen layers are run.

    Attributes:
        device: where networks run and train.
        runtime: what runs the trunk: a name, or "auto" for the fastest that repays itself.
        decoding: "fast", or "exact" for Pillow's pixels bit for bit.
        cache: how outputs are kept: "float32", "float16", "off" for not at all, or "auto" for what
            costs the least time here.
        verify: check what is read from the cache "once" in a process, or "always".
    """

    device: torch.device
    runtime: str = "auto"
    decoding: str = "fast"
    cache: str = "auto"
    verify: str = "once"

    def __post_init__(self) -> None:
        known = {
            "runtime": RUNTIMES,
            "decoding": DECODINGS,
            "cache": CACHES,
            "verify": VERIFICATIONS,
        }
        for name, values in known.items():
            value = getattr(self, name)
            if value not in values:
                hint = did_you_mean(str(value), values)
                raise UsageError(
                    f"--{name} {value!r} is unknown{hint}; choose from {', '.join(values)}"
                )
