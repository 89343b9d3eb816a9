"""What identifies a set of codes: everything that could change one of their bits.

The key of the cache is the SHA-256 of these facts. They hold no path, no batch of images and no
order: those do not change a code. What the facts might miss (a function that a module calls, a
library's kernels, the number of threads) shows in the canary: the trunk's output on two fixed
images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor, nn

from topwork.data.augment import PLAIN, View
from topwork.data.rendering import decoding_facts
from topwork.data.views import Preprocessing
from topwork.errors import ChainError
from topwork.network.cut import Trunk
from topwork.trunk.runtimes.runtime import Runtime

FORMAT = 3
"""Of the cache; raise it when codes or their files change their meaning."""


def fingerprint(
    *,
    trunk: Trunk,
    number: int,
    pool: str,
    preprocessing: Preprocessing,
    weights: str,
    code: str,
    runtime: Runtime,
    decoding: str,
    dtype: str,
    canary: str,
    view: View = PLAIN,
) -> dict[str, Any]:
    """Return the facts that identify the codes at one of a trunk's cuts, as plain data.

    They are the same whether the trunk has further cuts or not.

    Args:
        trunk: the layers.
        number: of the cut, among the trunk's.
        pool: how its tensor is pooled.
        preprocessing: what an image goes through.
        weights: the digest of the tensors below the cut.
        code: the digest of the code of blocks below the cut.
        runtime: what runs the trunk.
        decoding: "fast" or "exact".
        dtype: in which the codes are kept.
        canary: of `signs_of`.
        view: which rendering.
    """
    return {
        "format": FORMAT,
        "decoding": decoding_facts(decoding),
        "preprocessing": preprocessing.to_dict(),
        "view": view.facts(),
        "weights": weights,
        "program": hashlib.sha256(trunk.programs[number].encode()).hexdigest(),
        "code": code,
        "canary": canary,
        "cut": trunk.cuts[number].name,
        "pool": pool,
        "dtype": dtype,
        "runtime": runtime.facts(),
        "versions": {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
            "numpy": np.__version__,
        },
    }


def fingerprint_of_pixels(
    preprocessing: Preprocessing, decoding: str, view: View = PLAIN
) -> dict[str, Any]:
    """Return the facts that identify rendered pixels, as plain data: no network is among them."""
    return {
        "format": FORMAT,
        "decoding": decoding_facts(decoding),
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


def digests_of_tensors(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the SHA-256 of each tensor by its name: of type, shape and bytes.

    The bytes are contiguous in the order of the dimensions: the same weights in another memory
    layout are the same weights.
    """
    digests = {}
    for name, tensor in tensors.items():
        digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
        digests[name] = digest.hexdigest()
    return digests


def digest_of_digests(digests: Mapping[str, str]) -> str:
    """Return one SHA-256 of named ones, whatever their order."""
    lines = [f"{name} {digest}\n" for name, digest in sorted(digests.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def digests_of_code(parts: Sequence[nn.Module]) -> Iterator[str]:
    """Yield after each part the SHA-256 of what all modules so far do beside tensors and calls.

    That is the code of their classes and their plain attributes. Classes of torch, torchvision and
    timm go by their versions, which are facts of their own.
    """
    digest = hashlib.sha256()
    for part in parts:
        for name, module in part.named_modules():
            classes = [kind for kind in type(module).__mro__ if is_foreign(kind)]
            if classes:
                digest.update(f"{name} {plain_attributes(module)}\n".encode())
            for kind in classes:
                for method, value in sorted(vars(kind).items()):
                    digest.update(f"{kind.__qualname__}.{method} {facts_of(value)}\n".encode())
        yield digest.hexdigest()


def is_foreign(kind: type) -> bool:
    """Say whether a class belongs to none of the packages whose versions are facts."""
    return kind.__module__.partition(".")[0] not in ("torch", "torchvision", "timm", "builtins")


def plain_attributes(module: nn.Module) -> dict[str, object]:
    """Return what a module holds beside tensors and modules, but for its mode."""
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {name: facts_of(value) for name, value in sorted(own.items()) if name != "training"}


def facts_of(value: object) -> object:
    """Return what makes two values do the same, as far as it can be told; else their type.

    Of functions that is their code and their defaults. The text of it is the same in any process.
    """
    if isinstance(value, staticmethod | classmethod):
        return facts_of(value.__func__)
    if isinstance(value, property):
        return [facts_of(value.fget), facts_of(value.fset)]
    if isinstance(value, FunctionType):
        defaults = [value.__defaults__, value.__kwdefaults__]
        return [facts_of(value.__code__), *map(facts_of, defaults)]
    if isinstance(value, CodeType):
        code = [value.co_code.hex(), value.co_names, value.co_varnames]
        return [*code, [facts_of(one) for one in value.co_consts]]
    if isinstance(value, tuple | list):
        return [facts_of(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(facts_of(one)) for one in value)
    if isinstance(value, dict):
        return sorted((repr(key), repr(facts_of(one))) for key, one in value.items())
    if isinstance(value, int | float | complex | str | bytes | None):
        return repr(value)
    return type(value).__qualname__


def fixed_inputs(preprocessing: Preprocessing) -> np.ndarray:
    """Return two images, always the same: noise, and bold patches, which saturate more units.

    Returns:
        uint8 [2, H, W, C].
    """
    height, width = preprocessing.size
    shape = (height, width, preprocessing.channels)
    numbers = np.arange(prod(shape), dtype=np.uint64) * 2654435761 >> 13
    noise = (numbers & 255).astype(np.uint8).reshape(shape)
    coarse = (np.indices(shape) // np.array([24, 24, 1]).reshape(3, 1, 1, 1)).sum(0)
    patches = np.where(coarse % 2, 255, noise // 8).astype(np.uint8)
    return np.stack([noise, patches])


def signs_of(together: Sequence[np.ndarray], alone: Sequence[np.ndarray]) -> list[str]:
    """Return the SHA-256 of the codes of the fixed inputs, one for each output.

    Args:
        together: of both, computed in one batch.
        alone: of the first.

    Raises:
        ChainError: if a code depends on what else is in its batch.
    """
    for one, both in zip(alone, together, strict=True):
        if np.abs(one[0] - both[0]).max() > 1e-4 * np.abs(both).max():
            raise ChainError(
                "the network mixes the images of a batch (a batch norm without running"
                " statistics?), so that no image has codes of its own; choose another network"
            )
    return [hashlib.sha256(codes.tobytes()).hexdigest() for codes in together]
