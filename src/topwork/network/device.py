"""Where networks run."""

from __future__ import annotations

import torch

from topwork.errors import UsageError, did_you_mean


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
        hint = did_you_mean(name, available)
        raise UsageError(f"--device {name!r} is unknown{hint}; known are auto, cpu, cuda, mps")
    if not available[name]:
        raise UsageError(f"--device {name}: torch finds none on this machine; choose cpu or auto")
    return torch.device(name)
