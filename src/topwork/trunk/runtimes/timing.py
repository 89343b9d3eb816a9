"""Trying a runtime out: on which pixels, and how fast it is. Works without torch."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from topwork.trunk.runtimes.runtime import Run

SECONDS = 0.5
"""How long a runtime is timed, unless a few batches take longer."""

BATCHES = 3
"""That each thread runs at the least."""


def fixed_pixels(shape: tuple[int, ...]) -> np.ndarray:
    """Return the batch on which runtimes are compared: noise, but for a smooth second image.

    Args:
        shape: [B, H, W, C].

    >>> pixels = fixed_pixels((2, 8, 4, 3))
    >>> pixels.shape, pixels.dtype, pixels[1, :, 0, 0].tolist()
    ((2, 8, 4, 3), dtype('uint8'), [0, 31, 63, 95, 127, 159, 191, 223])
    """
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    rows = np.arange(shape[1]) * 255 // shape[1]
    pixels[1:2] = rows.astype(np.uint8)[None, :, None, None]
    return pixels


def seconds_per_image(run: Run, pixels: np.ndarray, threads: int) -> float:
    """Return the wall seconds that an image takes while some threads run batches side by side.

    The median of all batches, after one that each thread runs to warm up: so that an interruption
    from outside does not count.
    """

    def run_for_a_while(_: int) -> list[float]:
        run(pixels)
        taken: list[float] = []
        end = time.perf_counter() + SECONDS
        while len(taken) < BATCHES or time.perf_counter() < end:
            begin = time.perf_counter()
            run(pixels)
            taken.append(time.perf_counter() - begin)
        return taken

    with ThreadPoolExecutor(threads) as pool:
        taken = [seconds for part in pool.map(run_for_a_while, range(threads)) for seconds in part]
    return statistics.median(taken) / (len(pixels) * threads)
