"""Which codes may be kept in half precision."""

from __future__ import annotations

import numpy as np

TOLERANCE = 2.0**-10
"""Of a row's largest value. What is rounded to float16 moves by at most half of that; but values
above 65504 become infinite there, and a row of values below 2^-15 may lose more."""


def fits_half(codes: np.ndarray) -> np.ndarray:
    """Say which rows float16 can hold.

    Those that it can: no finite value becomes infinite, and none moves by more than 2^-10 of the
    row's largest absolute value. Infinities and NaN stay what they are.

    Args:
        codes: float32 [n, ...].

    Returns:
        bool [n].

    >>> fits_half(np.array([[1.0, 1e-9], [7e4, 1.0], [1e-9, 0.0], [0.0, 0.0]], np.float32)).tolist()
    [True, False, False, True]
    """
    flat = codes.reshape(len(codes), -1)
    with np.errstate(over="ignore", invalid="ignore"):
        moved = np.abs(flat.astype(np.float16).astype(np.float32) - flat)
    finite = np.isfinite(flat)
    largest = np.abs(flat).max(axis=1, initial=0, where=finite)
    return moved.max(axis=1, initial=0, where=finite) <= TOLERANCE * largest
