"""The facts of a machine on which the speed of a runtime depends."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")
CPU_INFO = Path("/proc/cpuinfo")
VECTOR_FLAGS = ("sse4", "avx", "fma", "f16c", "amx", "asimd", "sve", "bf16", "fphp")
"""How the names of instructions on which kernels are chosen begin."""


def machine_facts() -> dict[str, Any]:
    """Return the processor's model, its vector instructions and the number of cores.

    >>> sorted(machine_facts())
    ['cores', 'instructions', 'model', 'system']
    """
    lines = CPU_INFO.read_text(encoding="utf-8").splitlines() if CPU_INFO.is_file() else []
    said: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        said.setdefault(name.strip(), value.strip())
    flags = said.get("flags", said.get("Features", "")).split()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "model": said.get("model name") or platform.processor(),
        "instructions": sorted(flag for flag in flags if flag.startswith(VECTOR_FLAGS)),
        "cores": os.cpu_count() or 1,
    }


def versions() -> dict[str, str | None]:
    """Return the version of each package that takes part; None where it is not installed."""
    return {name: version_of(name) for name in PACKAGES}


def version_of(package: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
