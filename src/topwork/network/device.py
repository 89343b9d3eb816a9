"""Where networks run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import torch

from topwork.errors import UsageError, did_you_mean

GPU_BATCH = 64
CPU_BATCHES = 2, 16
"""The smallest, and the largest: beyond it nothing is gained."""
CPU_PIXELS = 2 * 224 * 224
"""Of a batch between these."""


def choose_device(name: str) -> torch.device:
    """Return the device of a name: "cpu", "cuda", "mps", or "auto" (CUDA where there is one).

    Raises:
        UsageError: if there is no such device, or this machine has none.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        name = "cuda" if available["cuda"] else "cpu"
    if name not in available:
        hint = "; did you mean 'cuda'?" if name == "gpu" else did_you_mean(name, available)
        raise UsageError(f"--device {name!r} is unknown{hint}; known are auto, cpu, cuda, mps")
    if not available[name]:
        raise UsageError(f"--device {name}: torch finds none on this machine; choose cpu or auto")
    return torch.device(name)


def batch_size(device: torch.device, size: tuple[int, int]) -> int:
    """Return how many images run at a time where nothing is trained, always as many.

    On a CPU, where batches run side by side, as many as have the pixels of two photos. Of photos
    the tensors of more would leave the caches; of two small images the layers take less time than
    calling them (32 pixels: half as much time an image in batches of 16).

    Args:
        device: where.
        size: height and width of an image in pixels.

    >>> [batch_size(torch.device("cpu"), (side, side)) for side in (28, 64, 128, 224, 384)]
    [16, 16, 6, 2, 2]
    """
    if device.type != "cpu":
        return GPU_BATCH
    least, most = CPU_BATCHES
    return min(max(least, CPU_PIXELS // prod(size)), most)


@contextmanager
def one_core_a_thread() -> Iterator[None]:
    """Let every Python thread run networks on one core of its own, as `map_ahead` wants it.

    Several threads of torch inside each of several threads of Python wait for each other, the more
    so on a busy machine. With one each, batches run side by side, and the bits of a code do not
    depend on the number of cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    # glibc maps blocks larger than any freed before afresh from the system, and clearing their
    # pages takes longer than filling them. Having freed one just below its limit of 32 MiB, it
    # keeps blocks up to that size. Elsewhere this does nothing.
    torch.empty(32 * 2**20 - 8192, dtype=torch.uint8)
    try:
        yield
    finally:
        torch.set_num_threads(before)
