"""What identifies a set of codes: everything that could change one of their bits.

The key of the cache is the SHA-256 of these facts. They hold no path, no batch of images and no
order: those do not change a code. What the facts might miss (the code of a module, a library's
kernels, the number of threads) shows in the canary: the trunk's output on two fixed inputs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor

from topwork.data.augment import PLAIN, View
from topwork.data.decode import DECODING
from topwork.data.views import Preprocessing
from topwork.errors import ChainError
from topwork.network.cut import Trunk

FORMAT = 1
"""Of the cache; raise it when codes or their files change their meaning."""


@dataclass(frozen=True)
class Runtime:
    """How the trunk is run: eager PyTorch in float32, channels last.

    Attributes:
        device: where.
        batch: images at a time. On a CPU the smallest are the fastest: the tensors of larger
            ones leave the caches, and batches run side by side anyway.
    """

    device: torch.device
    batch: int

    @property
    def layout(self) -> torch.memory_format:
        """The memory layout of maps."""
        return torch.channels_last

    def facts(self) -> dict[str, Any]:
        """Return what of it may change a bit of a code."""
        return {"name": "eager", "device": self.device.type, "layout": "channels_last"}


def choose_runtime(device: torch.device) -> Runtime:
    """Return the runtime for a device."""
    return Runtime(device, batch=2 if device.type == "cpu" else 64)


def fingerprint(
    *,
    trunk: Trunk,
    number: int,
    pool: str,
    preprocessing: Preprocessing,
    runtime: Runtime,
    canary: str,
    view: View = PLAIN,
) -> dict[str, Any]:
    """Return the facts that identify the codes at one of a trunk's cuts, as plain data.

    They are the same whether the trunk has further cuts or not.
    """
    return {
        "format": FORMAT,
        "decoding": dict(DECODING),
        "preprocessing": preprocessing.to_dict(),
        "view": view.facts(),
        "weights": digest_of_tensors(trunk.state(number + 1)),
        "program": hashlib.sha256(trunk.programs[number].encode()).hexdigest(),
        "canary": canary,
        "cut": trunk.cuts[number].name,
        "pool": pool,
        "dtype": "float32",
        "runtime": runtime.facts(),
        "versions": {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
            "numpy": np.__version__,
        },
    }


def fingerprint_of_pixels(preprocessing: Preprocessing, view: View = PLAIN) -> dict[str, Any]:
    """Return the facts that identify rendered pixels, as plain data: no network is among them."""
    return {
        "format": FORMAT,
        "decoding": dict(DECODING),
        "rendering": {
            "size": list(preprocessing.size),
            "crop": preprocessing.crop,
            "interpolation": preprocessing.interpolation,
            "channels": preprocessing.channels,
        },
        "view": view.facts(),
        "cut": "input",
        "pool": "none",
        "dtype": "uint8",
    }


def key_of(facts: dict[str, Any]) -> str:
    """Return the SHA-256 of facts, whatever the order of their keys.

    >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # Contiguous in the order of the dimensions: the same weights in another memory layout
        # are the same weights.
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def canary(
    codes: Callable[[np.ndarray], Sequence[np.ndarray]], preprocessing: Preprocessing
) -> list[str]:
    """Return the SHA-256 of the codes of two fixed inputs, one for each cut.

    Raises:
        ChainError: if a code depends on what else is in its batch.
    """
    height, width = preprocessing.size
    count = 2 * height * width * preprocessing.channels
    noise = (np.arange(count, dtype=np.uint64) * 2654435761 >> 13) & 255
    pixels = noise.astype(np.uint8).reshape(2, height, width, preprocessing.channels)
    found = codes(pixels)
    for alone, together in zip(codes(pixels[:1]), found, strict=True):
        if np.abs(alone[0] - together[0]).max() > 1e-4 * np.abs(together).max():
            raise ChainError(
                "the network mixes the images of a batch (a batch norm without running"
                " statistics?), so that no image has codes of its own; choose another network"
            )
    return [hashlib.sha256(code.tobytes()).hexdigest() for code in found]
