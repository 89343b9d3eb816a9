"""Whether making a faster runtime repays itself within the work at hand."""

from __future__ import annotations

from topwork.data.loading import workers

GUESS = 1.25
"""How many times as fast an untried runtime is guessed to be, cautiously: most gain more."""

COMPILING = 120.0
"""Seconds that torch.compile is taken to need. It takes 15 to 40 on two cores, but gains little and
is gone with the process: so that it is tried where there are ten minutes of work."""


def worth_compiling(
    images_left: int, seconds_per_image: float, batch: int, megabytes: float
) -> bool:
    """Say whether exporting a trunk and trying runtimes on it repays itself.

    Args:
        images_left: that are to go through it.
        seconds_per_image: wall time that one takes eager, all cores at work.
        batch: images at a time, on each core.
        megabytes: of weights.

    >>> worth_compiling(100, 0.007, 2, 9), worth_compiling(10_000, 0.007, 2, 9)
    (False, True)
    """
    cost = compiling_seconds(seconds_per_image * batch * workers(), megabytes)
    return repays(images_left, seconds_per_image, GUESS, cost)


def compiling_seconds(seconds_per_batch: float, megabytes: float) -> float:
    """Return about how long exporting a trunk and trying runtimes on it takes.

    Measured on two cores: 2 to 3 s for small networks (half of it in starting processes and timing
    them), a second more for 100 MB of weights. A slow network is timed for a few batches.
    """
    return 2.5 + 0.01 * megabytes + 10 * seconds_per_batch


def repays(images: int, seconds_per_image: float, faster: float, cost: float) -> bool:
    """Say whether a runtime so many times as fast as eager saves more seconds than it costs.

    >>> repays(1000, 0.01, 2.0, 4.9), repays(1000, 0.01, 2.0, 5.1)
    (True, False)
    """
    return images * seconds_per_image * (1 - 1 / faster) > cost
