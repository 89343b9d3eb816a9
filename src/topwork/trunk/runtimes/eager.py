"""PyTorch itself: as it is (always there, and what all others are held against), and compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from topwork.trunk.runtimes.runtime import Run


def eager_run(program: Callable[[Tensor], Sequence[Tensor]], device: torch.device) -> Run:
    """Return a trunk run by PyTorch in float32.

    Args:
        program: already on the device.
        device: where.
    """

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            values = program(torch.from_numpy(pixels).to(device))
        return [value.cpu().contiguous().numpy() for value in values]

    return run


def half_run(program: nn.Module, device: torch.device) -> Run:
    """Return a trunk run by PyTorch in mixed precision: matrix products in float16.

    Args:
        program: already on the device.
        device: a GPU; on a CPU without instructions for it this is many times as slow as float32.
    """
    whole = eager_run(program, device)

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        with torch.autocast(device.type, torch.float16):
            return whole(pixels)

    return run


def compiled_run(program: nn.Module, device: torch.device) -> Run:
    """Return a trunk run by what torch.compile makes of it: weights frozen into the code.

    The first batch compiles, which takes tens of seconds.

    Args:
        program: already on the device.
        device: where.
    """
    compiled = torch.compile(program, fullgraph=True, dynamic=False, options={"freezing": True})
    return eager_run(compiled, device)
