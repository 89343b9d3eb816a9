"""Which runtimes can be had on a machine, and on a device of it."""

from __future__ import annotations

import torch

from topwork.errors import UsageError
from topwork.network.device import batch_size
from topwork.trunk.runtimes.machine import version_of
from topwork.trunk.runtimes.runtime import Runtime

ONNX_RUNTIMES = ("onnxruntime", "openvino")
"""Those that open an ONNX file, on the CPU only."""

INSTALL = {
    "onnxruntime": "pip install onnxruntime onnx",
    "openvino": "pip install 'topwork[openvino]'",
}


def runtime_named(name: str, device: torch.device, size: tuple[int, int]) -> Runtime:
    """Return the runtime of a name, for images of a height and width in pixels.

    "eager", which is always there, is PyTorch as it is, in float32, channels last.
    """
    version = (version_of(name) or "") if name in ONNX_RUNTIMES else ""
    return Runtime(name, device, batch_size(device, size), version)


def require_runtime(name: str, device: torch.device) -> None:
    """Raise UsageError, naming the remedy, if a runtime cannot be had here."""
    if reason := why_not(name, device):
        raise UsageError(f"--runtime {name}: {reason}")


def why_not(name: str, device: torch.device) -> str | None:
    """Say why a runtime cannot be had here and what to do; None if it can.

    >>> why_not("eager", torch.device("cpu")), why_not("half", torch.device("cpu"))
    (None, 'needs a CUDA device; choose auto')
    """
    if name == "half" and device.type != "cuda":
        return "needs a CUDA device; choose auto"
    if name in ONNX_RUNTIMES:
        if device.type != "cpu":
            return "runs on a CPU; add --device cpu, or choose auto"
        if version_of(name) is None:
            return f"not installed; {INSTALL[name]}"
    return None
